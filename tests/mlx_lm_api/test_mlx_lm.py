"""`specdec.mlx_lm` on its own: what mlx-lm's README does, functions of callers, prompt caches, refusals."""

from __future__ import annotations

import copy
import resource
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_checkpoint import write_checkpoint
from text_model import text_store

import specdec
from specdec.errors import InvalidArgumentError, ModelFormatError, PluginError
from specdec.mlx_lm import batch_generate, convert, generate, load, stream_generate
from specdec.mlx_lm.generate import generate_step
from specdec.mlx_lm.models.cache import (
    can_trim_prompt_cache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from specdec.mlx_lm.sample_utils import make_logits_processors, make_sampler
from specdec.mlx_lm.tokenizer_utils import TokenizerWrapper

Both = tuple[specdec.Model, TokenizerWrapper]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A tiny MLX checkpoint, loaded: likely tokens stand out, so drafts are kept."""
    return load(str(write_checkpoint(tmp_path_factory.mktemp("mlx") / "tiny")))


def tokens(both: Both, prompt: Any = "Tell me", **options: Any) -> list[int]:
    """Tokens of an answer of 24, drafted three at a time."""
    given = {"max_tokens": 24, "num_draft_tokens": 3} | options
    return [one.token for one in stream_generate(*both, prompt, **given)]


def test_the_example_of_the_readme(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = both
    messages = [{"role": "user", "content": "Write a story about Einstein"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    text = generate(model, tokenizer, prompt=prompt, verbose=True, max_tokens=20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-4] == "=========="
    assert [line.split(":")[0] for line in lines[-3:]] == ["Prompt", "Generation", "Peak memory"]
    responses = list(stream_generate(model, tokenizer, prompt, max_tokens=20))
    assert "".join(one.text for one in responses) == text
    assert [one.generation_tokens for one in responses] == list(range(1, len(responses) + 1))
    assert {one.prompt_tokens for one in responses} == {len(prompt)}
    assert [one.finish_reason for one in responses[:-1]] == [None] * (len(responses) - 1)
    assert responses[-1].finish_reason in ("length", "stop")
    best = np.array(responses[0].logprobs)
    assert best.argmax() == responses[0].token
    assert np.isclose(np.exp(best).sum(), 1, atol=1e-3)


def test_tokens_are_those_of_the_engine(both: Both) -> None:
    model, tokenizer = both
    ids = tokenizer.encode("Tell me")
    plain = specdec.generate(model, ids, max_tokens=24, speculate=False).tokens
    assert tokens(both) == tokens(both, num_draft_tokens=0) == tokens(both, num_draft_tokens=None) == plain
    assert any(one.from_draft for one in stream_generate(*both, ids, max_tokens=24, num_draft_tokens=3))
    assert not any(one.from_draft for one in stream_generate(*both, ids, max_tokens=24, num_draft_tokens=0))
    assert [token for token, _ in generate_step(mx.array(ids), model, max_tokens=24)] == plain


class Counting:
    """A sampler with a state: every third token is the second likeliest one."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        assert logprobs.shape[0] == 1
        self.calls += 1
        order = mx.argsort(-logprobs, axis=-1)
        return order[:, 1 if self.calls % 3 == 0 else 0]


class Seeing:
    """A logits processor with a state: it writes down the texts that it was called for."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self.seen.append(tokens.tolist())
        return logits.at[:, len(self.seen) % 200].add(3.0)


def test_a_sampler_with_a_state_is_called_once_for_each_token(both: Both) -> None:
    plain, drafted = Counting(), Counting()
    wanted = tokens(both, sampler=plain, num_draft_tokens=0)
    assert tokens(both, sampler=drafted) == wanted
    assert plain.calls == drafted.calls == len(wanted)
    assert wanted != tokens(both)


def test_processors_see_every_text_once_and_in_order(both: Both) -> None:
    plain, drafted = Seeing(), Seeing()
    wanted = tokens(both, logits_processors=[plain], num_draft_tokens=0)
    assert tokens(both, logits_processors=[drafted]) == wanted
    prompt = both[1].encode("Tell me")
    assert drafted.seen == plain.seen == [prompt + wanted[:count] for count in range(len(wanted))]


def test_draws_do_not_change_with_speculation(both: Both) -> None:
    options = {"sampler": make_sampler(0.7, top_p=0.95), "logits_processors": make_logits_processors({5: 2.0}, 1.3)}
    found = []
    for count in (0, 1, 4, None):
        mx.random.seed(3)
        found.append([tokens(both, num_draft_tokens=count, **options) for _ in range(2)])
        found[-1].append([int(mx.random.randint(0, 1000).item())])  # nothing was drawn beyond the answers
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0] != found[0][1]


def test_nothing_is_asked_after_the_end(both: Both) -> None:
    model, tokenizer = both
    whole = tokens(both)
    position = next(index for index in range(2, 20) if whole[index] not in whole[:index])
    words = TokenizerWrapper(model.tokenizer)  # type: ignore[arg-type]
    words.eos_token_ids = {whole[position]}
    counting = Seeing()

    def likeliest(logprobs: mx.array) -> mx.array:
        counting(mx.array([0]), logprobs)
        return mx.argmax(logprobs, axis=-1)

    responses = list(stream_generate(model, words, "Tell me", max_tokens=24, num_draft_tokens=4, sampler=likeliest))
    assert [one.token for one in responses] == whole[: position + 1]
    assert responses[-1].finish_reason == "stop"
    assert len(counting.seen) == position + 1
    assert generate(model, words, "Tell me", max_tokens=24) == "".join(one.text for one in responses)
    assert tokenizer.eos_token_ids != words.eos_token_ids


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"sampler": lambda _: "x"}, "sampler '<lambda>' gave a wrong answer"),
        ({"sampler": lambda _: mx.array([10**6])}, "must return one token id"),
        ({"logits_processors": [lambda _, logits: logits[:, :3]]}, r"must return an array of shape \(1, 260\)"),
        ({"logits_processors": [lambda _, logits: logits * mx.nan]}, "'<lambda>' left no token: .* is nan"),
        ({"logits_processors": [lambda _, logits: logits - mx.inf]}, "'<lambda>' left no token: .* is -inf"),
    ],
)
def test_wrong_functions(both: Both, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(PluginError, match=told):
        tokens(both, **wrong)


def test_biases_of_tokens_that_there_are_not(both: Both) -> None:
    """MLX writes wherever an index points."""
    with pytest.raises(InvalidArgumentError, match="logit_bias must have token ids from 0 to 259 for this model"):
        tokens(both, logits_processors=make_logits_processors({10**9: 1.0}))
    with pytest.raises(InvalidArgumentError, match="a token id of logit_bias must be a whole number of at least 0"):
        make_logits_processors({-1: 1.0})
    banned = {np.int64(token): np.float32(-100) for token in set(tokens(both))}
    assert not set(tokens(both, logits_processors=make_logits_processors(banned))) & set(banned)


def test_errors_of_functions_are_the_callers(both: Both) -> None:
    def broken(_: mx.array) -> mx.array:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        tokens(both, sampler=broken)
    assert tokens(both) == tokens(both, num_draft_tokens=0)


def test_a_conversation_goes_on(both: Both) -> None:
    model, tokenizer = both
    cache = make_prompt_cache(model)
    assert len(cache) == model.config.num_layers
    first, second = tokenizer.encode("Hi my name is"), tokenizer.encode("What's my name?")
    one = tokens(both, first, prompt_cache=cache, max_tokens=9)
    assert cache[0].offset == len(first) + 9
    seen = Seeing()
    responses = list(stream_generate(*both, second, max_tokens=9, prompt_cache=cache, logits_processors=[seen]))
    assert seen.seen[0] == second  # as in mlx-lm, not the text before it
    assert responses[0].prompt_tokens == len(second)
    assert cache[0].offset == len(first) + len(second) + 18
    again = tokens(both, [*first, *one, *second], max_tokens=9, logits_processors=[Seeing()])
    assert [one.token for one in responses] == again
    assert cache[0].nbytes > 0


def test_caches_are_trimmed_copied_and_saved(both: Both, tmp_path: Path) -> None:
    model, tokenizer = both
    cache = make_prompt_cache(model)
    assert cache[0].empty()
    text = tokenizer.encode("A long enough prompt")
    generate(*both, text, max_tokens=8, prompt_cache=cache)
    other = copy.deepcopy(cache)
    assert can_trim_prompt_cache(cache)
    with pytest.raises(InvalidArgumentError, match="tokens to trim must be a whole number of at least 0, not -1"):
        trim_prompt_cache(cache, -1)
    assert trim_prompt_cache(cache, np.int64(8)) == 8
    assert (cache[0].offset, other[0].offset) == (len(text), len(text) + 8)
    file = str(tmp_path / "prompt.safetensors")
    save_prompt_cache(file, cache, {"model": "tiny"})
    loaded, metadata = load_prompt_cache(file, return_metadata=True)
    assert metadata == {"model": "tiny"}
    assert len(load_prompt_cache(file)) == len(cache)
    more = tokenizer.encode(" and more")
    wanted = tokens(both, [*text, *more])
    assert tokens(both, more, prompt_cache=cache) == wanted
    assert tokens(both, more, prompt_cache=loaded) == wanted
    assert other[0].offset == len(text) + 8
    assert trim_prompt_cache(cache, 10**6) == len(text) + len(more) + 24


def test_a_cache_that_cannot_be_saved_leaves_the_old_file(both: Both, tmp_path: Path) -> None:
    cache = make_prompt_cache(both[0])
    generate(*both, "abc", max_tokens=2, prompt_cache=cache)
    save_prompt_cache(str(tmp_path / "kept"), cache)  # the ending is MLX's
    before = (tmp_path / "kept.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # as on a full disk
    try:
        with pytest.raises(InvalidArgumentError, match=r"cannot write the prompt cache .*kept\.safetensors: "):
            save_prompt_cache(str(tmp_path / "kept.safetensors"), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "kept.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_that_stops_leaves_what_it_has_seen(both: Both) -> None:
    cache = make_prompt_cache(both[0])
    ids = both[1].encode("Tell me")
    seen = []
    for one in stream_generate(*both, ids, max_tokens=24, num_draft_tokens=4, prompt_cache=cache):
        seen.append(one.token)
        if len(seen) == 5:
            break
    del one
    assert cache[0].offset == len(ids) + 5
    assert tokens(both, [7], prompt_cache=cache, max_tokens=6) == tokens(both, [*ids, *seen, 7], max_tokens=6)


def test_a_cache_of_another_model_is_refused(both: Both, tmp_path: Path) -> None:
    other = load(str(text_store(tmp_path / "other.store", seed=5)))
    cache = make_prompt_cache(other[0])
    generate(*other, "abc", max_tokens=2, prompt_cache=cache)
    with pytest.raises(InvalidArgumentError, match="prompt_cache is of another model"):
        tokens(both, prompt_cache=cache)
    with pytest.raises(InvalidArgumentError, match="must come from"):
        tokens(both, prompt_cache=[object()])
    cache[0].trim(1)
    with pytest.raises(InvalidArgumentError, match="the layers of prompt_cache differ"):
        generate(*other, "abc", prompt_cache=cache)
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"0.0": mx.zeros(3)})
    with pytest.raises(ModelFormatError, match="is not a prompt cache of specdec"):
        load_prompt_cache(str(tmp_path / "x.safetensors"))
    with pytest.raises(ModelFormatError, match="cannot read the prompt cache"):
        load_prompt_cache(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_bits": 4}, "kv_bits=4 is refused: quantised keys and values would change the tokens"),
        ({"input_embeddings": mx.zeros((1, 2))}, "input_embeddings is refused"),
        ({"max_kv_size": 16}, "max_kv_size=16 is refused: prompt and answer may take 31 tokens"),
        ({"max_kv_size": 0}, "max_kv_size must be a whole number"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, or -1"),
        ({"max_tokens": -2}, "max_tokens must be a whole number of at least 1"),
        ({"prefill_step_size": 0}, "prefill_step_size must be a whole number of at least 1"),
        ({"num_draft_tokens": -1}, "num_draft_tokens must be a whole number of at least 0"),
        ({"draft_model": "x"}, "draft_model must be a model that specdec.mlx_lm.load returned, not str"),
    ],
)
def test_refusals(both: Both, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        tokens(both, **options)


def test_more_refusals(both: Both, tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "tiny"))
    for options, told in (
        ({"adapter_path": "x"}, "adapter_path='x' is refused"),
        ({"model_config": {"quantize_activations": True}}, "model_config is refused for quantize_activations"),
        ({"tokenizer_config": {"padding_side": "left"}}, "tokenizer_config is refused for 'padding_side'"),
        ({"tokenizer_config": {"eos_token": "<|nope|>"}}, "eos_token '<|nope|>' is not in the model's vocabulary"),
        ({"revision": "main"}, "revision='main' is for models of a hub"),
    ):
        with pytest.raises(InvalidArgumentError) as refusal:
            load(folder, **options)
        assert told in str(refusal.value)
    with pytest.raises(InvalidArgumentError, match=r"call mlx_lm\.convert"):
        convert("a/b", quantize=True)
    with pytest.raises(TypeError, match="beam"):
        generate(*both, "x", beam=3)
    with pytest.raises(InvalidArgumentError, match="the prompt is empty"):
        generate(*both, [])


def test_what_can_be_honoured_is(both: Both) -> None:
    wanted = tokens(both)
    told: list[tuple[int, int]] = []
    options = {"prefill_step_size": 3, "prompt_progress_callback": lambda *at: told.append(at)}
    assert tokens(both, "Tell me", max_kv_size=64, kv_bits=None, kv_group_size=32, **options) == wanted
    assert told == [(0, 7), (3, 7), (6, 7), (7, 7)]
    assert tokens(both, mx.array(both[1].encode("Tell me"))) == wanted
    endless = tokens(both, max_tokens=-1, num_draft_tokens=None)
    assert endless[:24] == wanted
    assert len(endless) == both[0].config.max_context - 7 or endless[-1] in both[1].eos_token_ids


def test_a_draft_model(both: Both, tmp_path: Path) -> None:
    twin = load(str(write_checkpoint(tmp_path / "tiny")))
    responses = list(stream_generate(*both, "Tell me", max_tokens=24, draft_model=twin[0], num_draft_tokens=4))
    assert [one.token for one in responses] == tokens(both)
    assert sum(one.from_draft for one in responses) > 5
    cache = make_prompt_cache(both[0]) + make_prompt_cache(twin[0])
    assert tokens(both, draft_model=twin[0], prompt_cache=cache) == tokens(both)


def test_load_takes_what_the_examples_give(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "tiny"))
    asked = {"eos_token": "<|user|>", "trust_remote_code": True}
    model, tokenizer, config = load(path_or_hf_repo=folder, tokenizer_config=asked, lazy=True, return_config=True)
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 2)
    assert tokenizer.eos_token == "<|user|>"
    assert tokenizer.eos_token_id in tokenizer.eos_token_ids
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|user|>"
    tokenizer.add_eos_token("<|assistant|>")
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") in tokenizer.eos_token_ids
    with pytest.raises(InvalidArgumentError, match="is not a token of this model"):
        tokenizer.add_eos_token("<|nope|>")
    detokenizer = tokenizer.detokenizer
    ids = tokenizer.encode("Zwölf<|end|>!")
    parts = []
    for token in ids:
        detokenizer.add_token(token)
        parts.append(detokenizer.last_segment)
    detokenizer.finalize()
    assert "".join(parts) == detokenizer.text == tokenizer.decode(ids) == "Zwölf<|end|>!"
    assert "\ufffd" not in detokenizer.text
    assert tokenizer("ab") == {"input_ids": tokenizer.encode("ab"), "attention_mask": [1, 1]}
    assert len(tokenizer) == tokenizer.vocab_size == model.config.vocab_size


def test_batches_do_not_depend_on_company(both: Both) -> None:
    prompts = [both[1].encode(text) for text in ("Tell me", "Hi", "A longer prompt than these")]
    many = batch_generate(*both, prompts, max_tokens=[5, 9, 7], return_token_ids=True, return_prompt_caches=True)
    assert many.token_ids == [
        tokens(both, prompt, max_tokens=count) for prompt, count in zip(prompts, (5, 9, 7), strict=True)
    ]
    assert many.texts == [both[1].decode(ids) for ids in many.token_ids or ()]
    more = [both[1].encode(text) for text in ("x", "yz", "!")]
    on = batch_generate(*both, more, prompt_caches=many.caches, max_tokens=4, return_token_ids=True)
    whole = [[*a, *b, *c] for a, b, c in zip(prompts, many.token_ids or (), more, strict=True)]
    assert on.token_ids == [tokens(both, prompt, max_tokens=4) for prompt in whole]
    assert many.caches is not None
    assert many.caches[0][0].offset == len(prompts[0]) + 5  # as they were
    assert on.stats.generation_tokens == 12


def test_batches_draw_the_same_however_they_are_cut(both: Both) -> None:
    prompts = [both[1].encode(text) for text in ("Tell me", "Hi", "More")]
    found = []
    for size in (1, 2, 32):
        mx.random.seed(5)
        options = {"completion_batch_size": size, "prefill_batch_size": 1, "prefill_step_size": 64}
        found.append(
            batch_generate(*both, prompts, max_tokens=8, sampler=make_sampler(1.0), return_token_ids=True, **options)
        )
    assert found[0].token_ids == found[1].token_ids == found[2].token_ids


def test_batches_refuse(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    for options, told in (
        ({"max_tokens": [1]}, "max_tokens needs a number for each of 2 prompts"),
        ({"prompt_caches": []}, "2 prompts need as many prompt_caches, not 0"),
        ({"completion_batch_size": 0}, "completion_batch_size must be a whole number"),
    ):
        with pytest.raises(InvalidArgumentError, match=told):
            batch_generate(*both, [[1], [2]], **options)
    with pytest.raises(TypeError, match="kv_bits"):
        batch_generate(*both, [[1]], kv_bits=4)
    assert batch_generate(*both, [], verbose=True).texts == []
    batch_generate(*both, [[1], [2]], max_tokens=2, verbose=True)
    assert "[batch_generate] Generation: 4 tokens" in capsys.readouterr().out
