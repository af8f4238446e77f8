"""Promise 1: the tokens are those of plain decoding, on the fake runtime and on the reference runtime.

On top of equal tokens, the logits of every verify pass equal those of one-token passes bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fake_runtime import EOS, ByteTokenizer, FakeRuntime, fake_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import synthetic_source, tiny_config

import specdec
from specdec.effort import EffortSchedule
from specdec.model import Model
from specdec.runtimes.base import Cache, ForwardResult, Runtime
from specdec.runtimes.registry import create_runtime
from specdec.store import Store, convert

sampling = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.0, 0.4, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 0, 1, 8]),
        "top_p": st.sampled_from([1.0, 0.9, 0.3]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "seed": st.integers(0, 2**64 - 1),
    }
)
drafting = st.fixed_dictionaries(
    {
        "draft_effort": st.floats(0.05, 1.0),
        "draft_view": st.sampled_from(["bucket", "int4", "exact"]),
        "draft_len": st.integers(1, 8),
    }
)
verify_effort = st.one_of(
    st.just(1.0),
    st.floats(0.3, 1.0),
    st.builds(
        lambda low, high: EffortSchedule(high, {"layers.*.mlp.*": low}), st.floats(0.3, 0.6), st.floats(0.6, 1.0)
    ),
)
quiet = pytest.mark.filterwarnings("ignore:draft effort:UserWarning")  # efforts are drawn at random


class RecordingRuntime:
    """Passes everything on, and remembers the last exact logits of every position."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.name, self.config, self.views = runtime, runtime.name, runtime.config, runtime.views
        self.rows: dict[int, np.ndarray] = {}

    def prepare_view(self, view: str) -> None:
        self.runtime.prepare_view(view)

    def new_cache(self, capacity: int) -> Cache:
        return self.runtime.new_cache(capacity)

    def forward(self, tokens: Sequence[int], cache: Cache, *, view: str = "exact", **options: Any) -> ForwardResult:
        start = cache.length
        result = self.runtime.forward(tokens, cache, view=view, **options)
        if view == "exact" and not options.get("last_only"):
            self.rows |= {start + 1 + index: row.copy() for index, row in enumerate(result.logits)}
        return result


def recorded(model: Model, prompt: list[int], **options: Any) -> tuple[specdec.Result, dict[int, np.ndarray]]:
    """The answer, and the logits behind each of its tokens."""
    runtime = RecordingRuntime(model.runtime)
    result = specdec.generate(Model(runtime, model.tokenizer), prompt, **options)
    positions = range(len(prompt), len(prompt) + len(result.tokens))
    return result, {position: runtime.rows[position] for position in positions}


def assert_identical(model: Model, prompt: list[int], drafting: dict[str, Any], **options: Any) -> specdec.Result:
    # Drafts read through the exact view would end up among the recorded rows, but those of the verify pass come after.
    plain, plain_rows = recorded(model, prompt, speculate=False, **options)
    fast, fast_rows = recorded(model, prompt, **drafting, **options)
    assert fast.tokens == plain.tokens
    assert (fast.text, fast.finish_reason, fast.stopped_by) == (plain.text, plain.finish_reason, plain.stopped_by)
    assert fast.identical_to == plain.identical_to
    for position, row in plain_rows.items():
        assert np.array_equal(fast_rows[position].view(np.uint32), row.view(np.uint32))
    stats = fast.stats
    assert stats.emitted == len(fast.tokens)
    assert stats.emitted + stats.cut == stats.accepted + stats.rounds
    return fast


@quiet
@given(
    weights=st.integers(0, 1000),
    prompt=st.lists(st.integers(0, 257), min_size=1, max_size=8),
    sampling=sampling,
    drafting=drafting,
    verify_effort=verify_effort,
    max_tokens=st.integers(1, 30),
    sharpness=st.sampled_from([0.5, 4.0]),
    context=st.sampled_from([512, 20]),
    end_tokens=st.sampled_from([frozenset({EOS}), frozenset(range(0, 258, 9))]),
)
@settings(max_examples=150, deadline=None)
def test_fake_models(weights, prompt, sampling, drafting, verify_effort, max_tokens, sharpness, context, end_tokens):
    runtime = FakeRuntime(fake_config(max_context=context), seed=weights, sharpness=sharpness)
    model = Model(runtime, ByteTokenizer(eos=end_tokens))
    result = assert_identical(model, prompt, drafting, max_tokens=max_tokens, verify_effort=verify_effort, **sampling)
    assert len(prompt) + len(result.tokens) <= context


@quiet
@given(data=st.data(), sampling=sampling, drafting=drafting)
@settings(max_examples=60, deadline=None)
def test_stop_strings(data, sampling, drafting):
    """Stops taken from the answer itself, so that they are met anywhere, also across tokens and rounds."""
    model = Model(FakeRuntime(seed=5, sharpness=4.0), ByteTokenizer(eos=frozenset()))
    whole = specdec.generate(model, [1, 2, 3], max_tokens=40, speculate=False, **sampling)
    start = data.draw(st.integers(0, len(whole.text) - 1))
    length = data.draw(st.integers(1, 4))
    stop = [whole.text[start : start + length], "never there"]
    result = assert_identical(model, [1, 2, 3], drafting, max_tokens=40, stop=stop, **sampling)
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop[0])]
    assert result.tokens == whole.tokens[: len(result.tokens)]


@quiet
@given(sampling=sampling, drafting=drafting, verify_effort=verify_effort, pieces=st.integers(1, 6), again=drafting)
@settings(max_examples=60, deadline=None)
def test_a_resumed_stream_goes_on_as_if_never_interrupted(sampling, drafting, verify_effort, pieces, again):
    model = Model(FakeRuntime(seed=8), ByteTokenizer(eos=frozenset()))
    prompt, options = [5, 6, 7], {"verify_effort": verify_effort, **sampling}
    whole = specdec.generate(model, prompt, max_tokens=30, speculate=False, **options)
    stream = specdec.stream(model, prompt, max_tokens=30, **drafting, **options)
    for _ in range(pieces):
        next(stream, None)
    stream.close()
    begun = stream.result().tokens
    assert begun == whole.tokens[: len(begun)]
    if len(begun) < 30:
        rest = specdec.generate(model, prompt + begun, max_tokens=30 - len(begun), **again, **options)
        assert begun + rest.tokens == whole.tokens


def test_drafting_with_the_verifiers_own_view_and_effort_is_always_right():
    """Same weights, same effort, same history, same noise: nothing can differ."""
    model = Model(FakeRuntime(seed=2), ByteTokenizer(eos=frozenset()))
    for temperature in (0.0, 1.0):
        result = specdec.generate(
            model, [1], max_tokens=41, draft_view="exact", draft_effort=1.0, draft_len=7, temperature=temperature
        )
        # Five rounds of 7 + 1, and the last token alone.
        assert (result.stats.rounds, result.stats.drafted, result.stats.accepted) == (6, 35, 35)


TINY = {
    "llama": {"architecture": "llama"},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "mistral": {"architecture": "mistral", "sliding_window": 6, "tie_embeddings": False},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "head_dim": 16},
}


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("stores")
    models = {}
    for seed, (name, shape) in enumerate(TINY.items()):
        source = synthetic_source(tiny_config(**shape), seed, dtype="bfloat16" if seed % 2 else "float16")
        store = Store.open(convert(source, folder / name))
        models[name] = Model(create_runtime("reference", store), store=store)
    return models


@quiet
@pytest.mark.parametrize("name", TINY)
@given(
    prompt=st.lists(st.integers(0, 46), min_size=1, max_size=5),
    sampling=sampling,
    drafting=drafting,
    verify_effort=verify_effort,
    max_tokens=st.integers(4, 14),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reference_runtime(tiny_models, name, prompt, sampling, drafting, verify_effort, max_tokens):
    assert_identical(
        tiny_models[name], prompt, drafting, max_tokens=max_tokens, verify_effort=verify_effort, **sampling
    )


def test_reference_runtime_resumed_stream(tiny_models):
    model, options = tiny_models["llama"], {"temperature": 1.0, "seed": 4, "draft_effort": 0.5}
    whole = specdec.generate(model, [3, 1, 4], max_tokens=16, **options)
    for cut in (1, 6, 15):
        rest = specdec.generate(model, [3, 1, 4, *whole.tokens[:cut]], max_tokens=16 - cut, **options)
        assert whole.tokens[:cut] + rest.tokens == whole.tokens


def test_two_streams_of_one_model_do_not_disturb_each_other(tiny_models):
    model = tiny_models["qwen2"]
    options = [{"temperature": 0.8, "seed": 1, "draft_effort": 0.6}, {"draft_view": "int4", "verify_effort": 0.5}]
    alone = [specdec.generate(model, [2, 7], max_tokens=12, **one).tokens for one in options]
    streams = [specdec.stream(model, [2, 7], max_tokens=12, **one) for one in options]
    together: list[list[int]] = [[], []]
    for _ in range(12):
        for tokens, stream in zip(together, streams, strict=True):
            tokens.extend(token for piece in [next(stream, None)] if piece for token in piece.tokens)
    assert together == alone
