"""Promise 1: the tokens are those of plain decoding, under every policy and drafter, on the fake and real runtimes.

On top of equal tokens, the logits of every verify pass equal those of one-token passes bit for bit.
"""

from __future__ import annotations

import numpy as np
import pytest
from fake_runtime import EOS, ByteTokenizer, FakeRuntime, fake_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from identity import DRAFTERS, POLICIES, assert_identical
from specdec.policies.goodput.policy import GoodputPolicy
from synthetic import synthetic_source, tiny_config
from useful import useful

import specdec
from specdec.engine.policy import DraftPlan, RoundOutcome, RoundState, StepSignals
from specdec.errors import PluginError
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.choose import best_runtime, create_runtime
from specdec.store import Store, convert

sampling = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.0, 0.4, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 0, 1, 8]),
        "top_p": st.sampled_from([1.0, 0.9, 0.3]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "seed": st.integers(0, 2**64 - 1),
    }
).map(useful)
drafting = st.fixed_dictionaries(
    {
        "draft_effort": st.floats(0.05, 1.0),
        "draft_view": st.sampled_from(["bucket", "int4", "exact"]),
        "draft_len": st.integers(1, 8),
        "policy": st.sampled_from(POLICIES),
        "drafter": st.sampled_from(DRAFTERS),
    }
).map(useful)
verify_effort = st.one_of(
    st.just(1.0),
    st.floats(0.3, 1.0),
    st.builds(
        lambda low, high: EffortSchedule(high, {"layers.*.mlp.*": low}), st.floats(0.3, 0.6), st.floats(0.6, 1.0)
    ),
)
quiet = pytest.mark.filterwarnings("ignore:draft effort:UserWarning")  # efforts are drawn at random


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
            model,
            [1],
            max_tokens=41,
            draft_view="exact",
            draft_effort=1.0,
            draft_len=7,
            policy="fixed",
            temperature=temperature,
        )
        # Five rounds of 7 + 1, and the last token alone.
        assert (result.stats.rounds, result.stats.drafted, result.stats.accepted) == (6, 35, 35)


TINY = {
    "llama": {"architecture": "llama"},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "mistral": {"architecture": "mistral", "sliding_window": 6, "tie_embeddings": False},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "head_dim": 16},
}


RUNTIMES = {"reference": ("reference", None)}
if best_runtime() == "native":
    RUNTIMES |= {"native, 1 thread": ("native", 1), "native, 2 threads": ("native", 2)}


@pytest.fixture(scope="module", params=RUNTIMES)
def tiny_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    runtime, threads = RUNTIMES[request.param]
    folder = tmp_path_factory.mktemp("stores")
    models = {}
    for seed, (name, shape) in enumerate(TINY.items()):
        source = synthetic_source(tiny_config(**shape), seed, dtype="bfloat16" if seed % 2 else "float16")
        store = Store.open(convert(source, folder / name))
        models[name] = Model(create_runtime(runtime, store, threads=threads), store=store)
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
def test_tiny_models(tiny_models, name, prompt, sampling, drafting, verify_effort, max_tokens):
    assert_identical(
        tiny_models[name], prompt, drafting, max_tokens=max_tokens, verify_effort=verify_effort, **sampling
    )


def test_tiny_models_resumed_stream(tiny_models):
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


class Hostile:
    """A policy that answers at random, chooses any option, remembers nothing, and raises now and then."""

    def __init__(self, seed: int, *, raises: bool = False) -> None:
        self.random, self.raises = np.random.default_rng(seed), raises

    def _maybe_raise(self) -> None:
        if self.raises and self.random.random() < 0.1:
            raise RuntimeError("for no reason")

    def plan(self, state: RoundState) -> DraftPlan:
        self._maybe_raise()
        option = state.options[self.random.integers(len(state.options))]
        length, effort = int(self.random.integers(0, 99)), self.random.uniform(0.01, 1)
        return DraftPlan(num_draft_tokens=length, effort=effort, drafter=option.drafter, view=option.view)

    def next_step(self, _signals: StepSignals) -> float | None:
        self._maybe_raise()
        return None if self.random.random() < 0.2 else self.random.uniform(0.01, 1)

    def observe(self, outcome: RoundOutcome) -> None:
        assert 0 <= outcome.accepted <= outcome.drafted
        self._maybe_raise()


ALL_DRAFTERS = ("effort", "ngram:min=1", "recycle", "early-exit:1", "chain:ngram:min=1,max=2,effort")


@given(seed=st.integers(0, 10**6), sampling=sampling)
@settings(max_examples=40, deadline=None)
def test_a_hostile_policy_with_every_drafter_and_view(seed, sampling):
    model = Model(FakeRuntime(seed=seed, sharpness=4.0), ByteTokenizer(eos=frozenset()))
    drafting = {"policy": Hostile(seed), "drafter": ALL_DRAFTERS, "draft_view": "int4,bucket"}
    assert_identical(model, [7, 7], drafting, max_tokens=30, **sampling)


@pytest.mark.parametrize("name", TINY)
def test_a_hostile_policy_on_tiny_models(tiny_models, name):
    for seed in range(4):
        drafting = {"policy": Hostile(seed), "drafter": ALL_DRAFTERS, "draft_view": "int4,bucket"}
        assert_identical(tiny_models[name], [3, 1, 3], drafting, max_tokens=14, temperature=seed / 2, seed=seed)


@pytest.mark.parametrize("seed", range(25))
def test_a_policy_that_raises_anywhere_is_named_and_leaves_all_clean(seed):
    model = Model(FakeRuntime(seed=seed), ByteTokenizer(eos=frozenset()))
    plain = specdec.generate(model, [5, 6], max_tokens=60, speculate=False)
    stream = specdec.stream(
        model, [5, 6], max_tokens=60, policy=Hostile(seed, raises=True), drafter=ALL_DRAFTERS, draft_view="int4,bucket"
    )
    engine, pieces = stream._answer.sequence, []
    with pytest.raises(PluginError, match=r"'Hostile' failed in (plan|next_step|observe): RuntimeError"):
        pieces.extend(stream)
    said = [token for piece in pieces for token in piece.tokens]
    assert said == plain.tokens[: len(said)]
    assert engine.tokens == [5, 6, *said]
    assert engine.cache.length == len(engine.tokens) - 1
    assert {kind for _, kind in engine.cache.entries} <= {("exact", 1.0)}
    rest = specdec.generate(model, [5, 6, *said], max_tokens=60 - len(said))
    assert said + rest.tokens == plain.tokens


def test_what_a_policy_has_learnt_changes_no_token():
    """One model, answer after answer, so that goodput knows more each time; and a model that knows nothing."""
    options = {"max_tokens": 40, "temperature": 1.0}
    knowing = Model(FakeRuntime(seed=4), ByteTokenizer(eos=frozenset()))
    for seed in range(8):
        fresh = Model(FakeRuntime(seed=4), ByteTokenizer(eos=frozenset()))
        assert (
            specdec.generate(knowing, [1, 2], seed=seed, **options).tokens
            == specdec.generate(fresh, [1, 2], seed=seed, speculate=False, **options).tokens
        )
    assert knowing.memory.policies[GoodputPolicy]


def test_trusted_tokens_are_named_and_keep_the_cache_at_verify_quality():
    model = Model(FakeRuntime(seed=6), ByteTokenizer(eos=frozenset()))
    options = {"max_tokens": 40, "policy": "fixed", "drafter": "effort", "draft_effort": 0.3}
    plain = specdec.generate(model, [1, 2], speculate=False, max_tokens=40)
    strict = specdec.generate(model, [1, 2], trust=1e-9, **options)
    assert (strict.tokens, strict.stats.trusted, strict.identical_to) == (plain.tokens, 0, "dense")
    stream = specdec.stream(model, [1, 2], trust=2.0, **options)
    engine = stream._answer.sequence
    for _ in stream:
        assert {kind for _, kind in engine.cache.entries} == {("exact", 1.0)}
    loose = stream.result()
    assert loose.tokens != plain.tokens
    assert loose.stats.trusted > 0
    assert loose.identical_to == f"nothing (trusted {loose.stats.trusted} tokens)"
    assert loose.stats.accepted > specdec.generate(model, [1, 2], **options).stats.accepted
    everything = specdec.generate(model, [1, 2], trust=1e9, **options)
    assert everything.stats.trusted == everything.stats.drafted == everything.stats.accepted


def test_tokens_without_a_distribution_are_never_trusted():
    model = Model(FakeRuntime(fake_config(vocab_size=4), seed=1), None)
    options = {"max_tokens": 60, "drafter": "ngram:min=1", "policy": "fixed"}
    plain = specdec.generate(model, [1, 2, 1, 2], max_tokens=60, speculate=False)
    trusting = specdec.generate(model, [1, 2, 1, 2], trust=100.0, **options)
    assert trusting.stats.drafted > 0
    assert (trusting.tokens, trusting.identical_to) == (plain.tokens, "dense")
