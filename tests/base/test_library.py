"""The library's surface: load, logits, generate, stream; their arguments; and the distribution of what they say."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from fake_runtime import FakeRuntime, fake_config, fake_model
from places import DATA
from scipy import stats

import specdec
from specdec.engine.decode import PREFILL_CHUNK
from specdec.engine.options import DEFAULTS, OptionArguments
from specdec.errors import InvalidArgumentError, ModelFormatError, UnknownNameError
from specdec.model.loaded import Model

TINY = DATA / "tiny-llama"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A Hugging Face folder, converted into a cache folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECDEC_HOME", str(tmp_path_factory.mktemp("home")))
        return specdec.load(TINY)


def test_load_converts_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    first, second = specdec.load(TINY), specdec.load(str(TINY), runtime="reference")
    assert first.store is not None
    assert second.store is not None
    assert first.store.path == second.store.path
    assert first.store.path.is_relative_to(tmp_path)
    # Two runtimes may stand behind the two: float32 sums in another order, and a cache of float16 in one.
    assert np.allclose(first.logits([1, 2]), second.logits([1, 2]), atol=1e-2)
    assert np.array_equal(specdec.load(first.store.path).logits([1, 2]), first.logits([1, 2]))


def test_load_refuses_what_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    with pytest.raises(UnknownNameError, match=r"unknown model 'no-such-model': choose from .*smollm2-135m"):
        specdec.load("no-such-model")
    with pytest.raises(UnknownNameError, match="unknown runtime 'fast'"):
        specdec.load(TINY, runtime="fast")
    with pytest.raises(InvalidArgumentError, match="threads must be a whole number"):
        specdec.load(TINY, threads=0)
    with pytest.raises(InvalidArgumentError, match="threads must be a whole number"):
        specdec.load(TINY, threads=True)


def test_names_that_no_file_can_have(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    long = "x" * 5000
    with pytest.raises(ModelFormatError, match=r"cannot look for the model 'xx+': File name too long"):
        specdec.load(long)
    for policy, told in ((f"{long}.yaml", "xx+: File name too long"), ("a\0.yaml", ".*: embedded null byte")):
        with pytest.raises(InvalidArgumentError, match=f"cannot read the policy file {told}"):
            specdec.generate(fake_model(), [1], policy=policy)
    with pytest.raises(InvalidArgumentError, match="trace must be the path of a file"):
        specdec.generate(fake_model(), [1], trace="a\0b")


def test_load_takes_numbers_of_numpy(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    model = specdec.load(TINY, threads=np.int64(1), context=np.int32(64), load_share=np.float32(1))
    assert (type(model.config.max_context), model.config.max_context) == (int, 64)


def test_what_is_of_another_kind_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    for model in (None, 5, b"smollm2-135m"):
        with pytest.raises(InvalidArgumentError, match=r"model must be a name or a path, not "):
            specdec.load(model)
    with pytest.raises(InvalidArgumentError, match="accept_licence must be True, False or a function, not 5"):
        specdec.load("gemma-3-270m", accept_licence=5)  # no consent to anything
    for use, name in ((specdec.generate, "generate"), (lambda model, _: specdec.Batch(model), "Batch")):
        with pytest.raises(InvalidArgumentError, match=f"{name} needs a model that specdec.load returned, not 'tiny'"):
            use("tiny", "hello")
    with pytest.raises(InvalidArgumentError, match="trace must be the path of a file, not 5"):
        specdec.generate(tiny, [1, 2], trace=5)
    with pytest.raises(InvalidArgumentError, match="draft_view must be the name of a view, not None"):
        specdec.generate(tiny, [1, 2], draft_view=None)
    assert not list(tmp_path.iterdir())


def test_logits_are_those_of_the_model(tiny):
    expected = json.loads((TINY / "expected.json").read_text())
    ids, wanted = expected["input_ids"][0], np.array(expected["logits"][0], np.float32)
    logits = tiny.logits(ids, effort=1.0)
    assert (logits.dtype, logits.shape) == (np.float32, wanted.shape)
    # The expected values were computed with rotary frequencies rounded to float16, which moves them by up to 5e-3 from
    # a float64 computation; the runtime's own distance from that is below 1e-5.
    assert np.abs(logits - wanted).max() < 1e-2
    length = expected["greedy_prompt_len"]
    greedy = specdec.generate(tiny, ids[:length], max_tokens=24, draft_effort=0.4)
    assert greedy.tokens == expected["greedy_ids"][0]


def test_logits_by_effort_and_view(tiny):
    ids = [5, 6, 7, 8]
    dense = tiny.logits(ids)
    assert np.array_equal(tiny.logits(np.array(ids), effort=specdec.EffortSchedule()), dense)
    low, int4 = tiny.logits(ids, effort=0.3), tiny.logits(ids, view="int4")
    assert not np.array_equal(low, dense)
    assert not np.array_equal(int4, dense)
    assert np.array_equal(tiny.logits(ids[:2], effort=0.3), low[:2])


def test_logits_of_a_long_text_are_read_in_chunks():
    model = Model(FakeRuntime(fake_config(max_context=2000)), None)
    ids = [token % 258 for token in range(PREFILL_CHUNK + 3)]
    logits = model.logits(ids)
    assert [rows for _, _, _, rows in model.runtime.passes] == [PREFILL_CHUNK, 3]
    assert np.array_equal(logits[-1], model.logits(ids)[-1])
    assert np.array_equal(logits[:5], model.logits(ids[:5]))


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "ids must hold 1 to 512 tokens, not 0"),
        ([1] * 513, {}, "ids must hold 1 to 512 tokens, not 513"),
        ([300], {}, "token id 300 is outside the vocabulary of 258"),
        ([1], {"effort": 0}, "effort must be a number above 0"),
        ([1], {"view": "int3"}, "unknown view 'int3'"),
    ],
)
def test_logits_refuses(ids, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        fake_model().logits(ids, **options)


def test_generate_and_stream_take_the_same_arguments():
    generate, stream = inspect.signature(specdec.generate), inspect.signature(specdec.stream)
    assert list(generate.parameters) == list(stream.parameters) == ["model", "prompt", "progress", "options"]
    promised = {
        "max_tokens": 256,
        "draft_effort": None,
        "draft_view": "auto",
        "verify_effort": 1.0,
        "draft_len": 4,
        "policy": "auto",
        "drafter": "auto",
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "logits_processors": (),
        "response_format": None,
        "grammar": None,
        "regex": None,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "chat": True,
        "literal": True,
        "chat_template_kwargs": None,
        "speculate": True,
        "trust": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "trace": None,
    }
    assert promised == DEFAULTS
    assert list(OptionArguments.__annotations__) == list(DEFAULTS)
    annotations = {one.name: one.type for one in fields(specdec.Options)}
    assert annotations == {name: one.__forward_arg__ for name, one in OptionArguments.__annotations__.items()}


@pytest.mark.parametrize("verb", [specdec.generate, specdec.stream])
def test_an_unknown_option_is_named(verb):
    with pytest.raises(TypeError, match=rf"{verb.__name__}\(\) has no option 'max_token': choose from max_tokens"):
        verb(fake_model(), [1], max_token=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1, not 0"),
        ({"max_tokens": 2.0}, "max_tokens must be a whole number"),
        ({"draft_len": 0}, "draft_len must be .* at least 1, not 0; use speculate=False"),
        ({"draft_len": -3}, "draft_len must be .* not -3"),
        ({"draft_effort": 0.0}, "draft_effort must be a number above 0 and at most 1, not 0.0"),
        ({"verify_effort": 1.5}, "verify_effort must be a number above 0 and at most 1, not 1.5"),
        ({"draft_effort": "low"}, "draft_effort must be a number"),
        ({"draft_effort": specdec.EffortSchedule(0.1, {"nose": 0.2})}, "effort rule 'nose' matches no matrix"),
        ({"verify_effort": specdec.EffortSchedule(1, {"nose": 0.2})}, "effort rule 'nose' matches no matrix"),
        ({"temperature": -1}, "temperature must be"),
        ({"stop": [""]}, "a stop string must be text of at least one character, not ''"),
        ({"stop": ["\ud800"]}, r"a stop string must be valid Unicode, not '\\ud800'"),
        ({"stop": [3]}, "a stop string must be text"),
        ({"stop": 3}, "stop must be text or a sequence of texts, not 3"),
        ({"policy": 3}, "policy must be a name or an object with"),
        ({"drafter": 3}, "drafter must be a name or an object with"),
    ],
)
@pytest.mark.parametrize("verb", [specdec.generate, specdec.stream])
def test_wrong_arguments_are_refused_before_anything_runs(verb, options, message):
    model = fake_model()
    with pytest.raises(InvalidArgumentError, match=message):
        verb(model, [1], **options)
    assert model.runtime.passes == []


def test_drafting_above_the_verify_effort_is_allowed_and_warned_of():
    with pytest.warns(UserWarning, match="draft effort 0.8 is above verify effort 0.5"):
        fast = specdec.generate(fake_model(), [1], max_tokens=8, draft_effort=0.8, verify_effort=0.5)
    plain = specdec.generate(fake_model(), [1], max_tokens=8, verify_effort=0.5, speculate=False)
    assert fast.tokens == plain.tokens
    assert fast.identical_to == "effort 0.5"


def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="draft effort") as caught:
        specdec.stream(fake_model(), [1], draft_effort=0.8, verify_effort=0.5)
    assert caught[0].filename == __file__


def test_every_piece_has_text_and_tokens():
    stream = specdec.stream(fake_model(), "hello", max_tokens=20, draft_effort=0.7, policy="fixed")
    pieces = list(stream)
    result = specdec.generate(fake_model(), "hello", max_tokens=20, draft_effort=0.7, policy="fixed")
    assert "".join(piece.text for piece in pieces) == result.text == stream.result().text
    assert [token for piece in pieces for token in piece.tokens] == result.tokens == stream.result().tokens
    assert len(pieces) == result.stats.rounds
    assert list(stream) == []


def test_a_stream_closed_early_keeps_what_it_had():
    stream = specdec.stream(fake_model(), [1], max_tokens=30)
    first = next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    result = stream.result()
    assert (result.tokens, result.text) == (first.tokens, first.text)
    assert (result.finish_reason, result.stopped_by) == ("interrupted", "caller")
    assert result.stats.emitted == len(first.tokens)


def test_a_result_asked_for_in_between_stays_as_it_was():
    stream = specdec.stream(fake_model(), [1], max_tokens=30)
    next(stream)
    early = stream.result()
    before = early.to_dict()
    list(stream)
    assert early.to_dict() == before
    assert stream.result().stats.rounds > early.stats.rounds


def test_a_stream_left_through_a_with_block_is_closed():
    with specdec.stream(fake_model(), [1], max_tokens=30) as stream:
        next(stream)
    assert next(stream, None) is None


@pytest.mark.parametrize("failing", range(1, 15))
def test_interrupted_in_the_middle_of_a_pass(failing, tmp_path):
    """Ctrl-C at any pass: what was said stays, the trace has whole lines, and the answer can be taken up again."""
    options = {"temperature": 0.9, "draft_effort": 0.6, "seed": 3, "policy": "fixed", "draft_len": 3}
    whole = specdec.generate(fake_model(), [4, 5, 6], max_tokens=16, **options)
    model = fake_model()
    model.runtime.fail_at_pass = failing
    stream = specdec.stream(model, [4, 5, 6], max_tokens=16, trace=tmp_path / "trace", **options)
    shown: list[specdec.Piece] = []
    with pytest.raises(KeyboardInterrupt):
        shown.extend(stream)
    result = stream.result()
    assert result.finish_reason == "interrupted"
    assert result.text == "".join(piece.text for piece in shown)
    assert result.tokens == [token for piece in shown for token in piece.tokens] == whole.tokens[: len(result.tokens)]
    assert len((tmp_path / "trace").read_text().splitlines()) == len(shown) == result.stats.rounds
    assert list(stream) == []
    rest = specdec.generate(fake_model(), [4, 5, 6, *result.tokens], max_tokens=16 - len(result.tokens), **options)
    assert result.tokens + rest.tokens == whole.tokens


def test_equal_seeds_give_equal_answers_and_others_give_others():
    def say(seed):
        return specdec.generate(fake_model(), [1], max_tokens=20, temperature=1.0, seed=seed).tokens

    assert say(5) == say(5)
    assert say(5) != say(6)


@pytest.mark.parametrize("speculate", [True, False])
def test_first_tokens_follow_the_models_distribution(speculate):
    """Chi-square of the joint distribution of the first two tokens over many seeds, by the model's own logits.

    The seeds are fixed, so the outcome is too; a right sampler would miss 1e-4 for one choice of seeds in ten thousand.
    """
    vocab, draws = 5, 4000
    model = Model(FakeRuntime(fake_config(vocab_size=vocab), seed=12, sharpness=0.5), None)
    options = {"max_tokens": 2, "temperature": 0.8} | ({"draft_effort": 0.5} if speculate else {"speculate": False})

    def probabilities(ids):
        logits = model.logits(ids)[-1].astype(np.float64) / 0.8
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    joint = np.array([p * probabilities([1, token]) for token, p in enumerate(probabilities([1]))]).ravel()
    answers = (specdec.generate(model, [1], seed=seed, **options).tokens for seed in range(draws))
    counts = np.bincount([first * vocab + second for first, second in answers], minlength=vocab**2)
    assert draws * joint.min() > 5  # where the chi-square approximation holds
    assert stats.chisquare(counts, draws * joint).pvalue > 1e-4


def test_importing_specdec_imports_no_runtime():
    """So that the package works where MLX has no backend, and the command line starts quickly."""
    heavy = "mlx gguf tokenizers sentencepiece jinja2 safetensors"
    code = f"import sys, specdec; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_automatic_view_is_the_runtimes_choice():
    model = fake_model()
    result = specdec.generate(model, [1, 2, 3], max_tokens=8, draft_view="auto", draft_effort=0.5)
    assert result.stats.draft_view == model.runtime.info.auto_draft[0]
    with pytest.raises(UnknownNameError, match="auto, bucket, exact, int4"):
        specdec.generate(model, [1, 2, 3], draft_view="nonesuch")
