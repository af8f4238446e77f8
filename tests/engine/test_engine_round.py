"""The round: its rule, its budget, its cache, and what happens when a part of it misbehaves."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config, fake_model

import specdec
from specdec.drafters import registry as drafters
from specdec.drafters.base import Draft
from specdec.drafters.signals import LogitDistribution
from specdec.engine import decode
from specdec.engine.accept import accept
from specdec.engine.decode import PREFILL_CHUNK
from specdec.engine.efforts import EffortScale, describe_target
from specdec.engine.policy import DraftPlan
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.engine.sequence import Sequence
from specdec.errors import InvalidArgumentError, PluginError, SpecdecError, UnknownNameError
from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.model.loaded import Model
from specdec.registry import Registry
from specdec.runtimes.base import forward_one


def rows_choosing(*tokens: int) -> np.ndarray:
    rows = np.zeros((len(tokens), 10), np.float32)
    rows[np.arange(len(tokens)), tokens] = 1
    return rows


@pytest.mark.parametrize(
    ("draft", "choices", "expected"),
    [
        ([], [4], (0, 4)),
        ([4, 5], [4, 5, 6], (2, 6)),
        ([4, 5], [4, 9, 6], (1, 9)),
        ([4, 5], [9, 5, 6], (0, 9)),  # what follows a rejected token does not matter, even when it agrees
    ],
)
def test_accepts_the_prefix_that_the_verifier_would_have_chosen(draft, choices, expected):
    kept, token, _ = accept(draft, rows_choosing(*choices), Sampler(SamplingParams()), position=3)
    assert (len(kept), token) == expected
    assert list(kept) == list(range(len(kept)))


def test_rows_are_drawn_at_their_own_positions():
    params = SamplingParams(temperature=1.0, seed=6)
    rows = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    own = [Sampler(params)(row, 50 + index) for index, row in enumerate(rows)]
    assert accept(own[:3], rows, Sampler(params), position=50)[:2] == (range(3), own[3])
    assert accept(own[:3], rows, Sampler(params), position=51)[:2] != (range(3), own[3])


def engine_for(runtime: FakeRuntime, prompt: list[int], limit: int) -> Sequence:
    efforts = resolve_efforts(1.0, runtime.config)
    return Sequence(runtime, prompt, limit=limit, efforts=efforts, sampler=Sampler(SamplingParams()))


def test_prefill_reads_all_but_the_last_token_in_chunks():
    runtime = FakeRuntime(fake_config(max_context=4096))
    engine = engine_for(runtime, [1] * (2 * PREFILL_CHUNK + 2), 2000)
    bytes_read = decode.read_prompt(engine)
    sizes = [PREFILL_CHUNK, PREFILL_CHUNK, 1]
    assert [(view, rows) for view, _, _, rows in runtime.passes] == [("exact", size) for size in sizes]
    assert engine.cache.length == len(engine.tokens) - 1
    assert bytes_read == 1000 * sum(sizes) + 3 * 7  # what the fake runtime says it read


def test_a_prompt_of_one_token_needs_no_prefill():
    runtime = FakeRuntime()
    assert decode.read_prompt(engine_for(runtime, [1], 9)) == 0
    assert runtime.passes == []


def test_an_interrupted_round_did_not_happen():
    """Whichever pass is cut short, the engine is as before, and the next try gives what it would have given."""
    settings = {"max_tokens": 9, "policy": "fixed", "draft_len": 3, "draft_effort": 0.6}
    whole = fake_model(seed=3)
    expected = specdec.generate(whole, [1, 2, 3], **settings).tokens
    started = fake_model(seed=3)
    next(specdec.stream(started, [1, 2, 3], **settings))
    first, last = len(started.runtime.passes), len(whole.runtime.passes)
    assert last - first >= 4
    for failing in range(first + 1, last + 1):
        model = fake_model(seed=3)
        stream = specdec.stream(model, [1, 2, 3], **settings)
        engine = stream._answer.sequence
        decode.read_prompt(engine)
        decode.step(engine)
        before = (list(engine.tokens), list(engine.cache.entries), engine.rounds)
        model.runtime.fail_at_pass = failing
        interrupted = False
        while len(engine.tokens) < 12:
            try:
                decode.step(engine)
            except KeyboardInterrupt:
                interrupted = True
                assert (engine.tokens, engine.cache.entries, engine.rounds) == before
            before = (list(engine.tokens), list(engine.cache.entries), engine.rounds)
        assert interrupted
        assert engine.tokens[3:12] == expected


def test_never_drafts_past_the_budget_or_the_context():
    for context, max_tokens in ((512, 6), (9, 50)):
        model = fake_model(config=fake_config(max_context=context), tokenizer=ByteTokenizer(eos=frozenset()))
        result = specdec.generate(
            model, [1, 2, 3], max_tokens=max_tokens, policy="fixed", draft_len=8, draft_effort=1.0
        )
        assert len(result.tokens) == 6
        assert (result.finish_reason, result.stopped_by) == ("length", "max_tokens" if context == 512 else "context")
        # A token that could never be emitted is not even read: positions stay below the limit, less one.
        assert max(start + rows for _, _, start, rows in model.runtime.passes) <= 8


def test_drafting_ends_at_an_end_token():
    tokenizer = ByteTokenizer(eos=frozenset(range(0, 258, 2)))  # about every second token
    model = fake_model(tokenizer=tokenizer, seed=1)
    for seed in range(20):
        for _ in specdec.stream(model, [seed], max_tokens=30, policy="fixed", draft_len=8, draft_effort=1.0):
            pass
    drafted = [start for view, _, start, _ in model.runtime.passes if view == "bucket"]
    assert len(drafted) < 20 * 8 / 2


class ScriptedPolicy:
    """Plays back answers; an exception among them is raised."""

    def __init__(self, plan=None, step=0.5, seen=None):
        self.answers = {"plan": plan or DraftPlan(num_draft_tokens=3, effort=0.5), "next_step": step, "observe": seen}

    def _answer(self, method):
        if isinstance(self.answers[method], Exception):
            raise self.answers[method]
        return self.answers[method]

    def plan(self, _state):
        return self._answer("plan")

    def next_step(self, _signals):
        return self._answer("next_step")

    def observe(self, _outcome):
        return self._answer("observe")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"plan": ZeroDivisionError("oh")}, "failed in plan: ZeroDivisionError: oh"),
        ({"plan": 4}, "plan must answer a DraftPlan, not 4"),
        ({"plan": DraftPlan(num_draft_tokens=-1, effort=0.5)}, "num_draft_tokens .* not -1"),
        ({"plan": DraftPlan(num_draft_tokens=1.5, effort=0.5)}, "num_draft_tokens .* not 1.5"),
        ({"plan": DraftPlan(num_draft_tokens=2, effort=0)}, "above 0 and at most 1, not 0"),
        (
            {"plan": DraftPlan(num_draft_tokens=2, effort=1, drafter="magic")},
            r"on offer \(effort with view int4, ngram with view None, recycle with view None\), not \('magic', None\)",
        ),
        ({"plan": DraftPlan(num_draft_tokens=2, effort=1, view="int3")}, r"must be on offer .* not \(None, 'int3'\)"),
        ({"step": 1.2}, "above 0 and at most 1, not 1.2"),
        ({"step": float("nan")}, "above 0 and at most 1, not nan"),
        ({"step": "low"}, "above 0 and at most 1, not 'low'"),
        ({"step": KeyError("x")}, "failed in next_step: KeyError"),
        ({"seen": RuntimeError("late")}, "failed in observe: RuntimeError: late"),
    ],
)
def test_a_faulty_policy_is_named_and_leaves_the_engine_clean(answers, message):
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    stream = specdec.stream(model, [1, 2, 3], policy=ScriptedPolicy(**answers))
    engine = stream._answer.sequence
    with pytest.raises(PluginError, match=f"policy 'ScriptedPolicy' .*{message}"):
        next(stream)
    assert engine.tokens == [1, 2, 3]
    assert engine.cache.length == 2
    assert {kind for _, kind in engine.cache.entries} == {("exact", 1.0)}
    assert next(stream, None) is None


class RandomPolicy:
    """Answers at random, within the rules."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def plan(self, _state):
        return DraftPlan(num_draft_tokens=int(self.random.integers(0, 12)), effort=self.random.uniform(0.01, 1))

    def next_step(self, signals):
        assert signals.distribution.entropy >= 0
        return None if self.random.random() < 0.2 else self.random.uniform(0.01, 1)

    def observe(self, outcome):
        assert 0 <= outcome.accepted <= outcome.drafted == len(outcome.signals)


@pytest.mark.parametrize("seed", range(20))
def test_a_policy_that_answers_at_random_changes_nothing_but_speed(seed):
    options = {"max_tokens": 40, "temperature": seed % 3 / 2, "seed": seed}
    plain = specdec.generate(fake_model(seed=seed), [9, 8], speculate=False, **options)
    fast = specdec.generate(fake_model(seed=seed), [9, 8], policy=RandomPolicy(seed), **options)
    assert fast.tokens == plain.tokens
    assert fast.stats.rounds < plain.stats.rounds


def test_a_policy_may_decline_to_draft():
    result = specdec.generate(
        fake_model(), [1], max_tokens=8, policy=ScriptedPolicy(plan=DraftPlan(num_draft_tokens=0, effort=0))
    )
    assert (result.stats.drafted, result.stats.rounds) == (0, 8)


class RandomDrafter:
    """Proposes tokens without a model: no signals, no view, and a cache left in disorder."""

    views = ()
    takes_effort = False

    def __init__(self, runtime, excess=0):
        self.runtime, self.excess, self.random = runtime, excess, np.random.default_rng(0)

    def draft(self, plan, context, *, policy):
        tokens = [int(t) for t in self.random.integers(0, 4, plan.num_draft_tokens + self.excess)]
        forward_one(self.runtime, tokens, context.cache, effort=EffortSchedule(0.2), view="int4")
        return Draft(tokens=tokens)


def test_any_drafter_gives_plain_decodings_tokens():
    def model():
        return Model(FakeRuntime(fake_config(vocab_size=4)), None)  # so small that guesses come true

    plain = specdec.generate(model(), [1, 2], max_tokens=60, temperature=1.0, seed=0, speculate=False)
    guessing = model()
    fast = specdec.generate(
        guessing,
        [1, 2],
        max_tokens=60,
        temperature=1.0,
        seed=0,
        drafter=RandomDrafter(guessing.runtime),
        draft_len=3,
        policy="fixed",
    )
    assert fast.tokens == plain.tokens
    assert fast.stats.accepted > 5
    assert fast.stats.draft_view is None


def test_a_drafter_that_another_package_registers(monkeypatch):
    seen = []

    def construct(argument, setup):
        seen.append((argument, setup.view, setup.vocabulary))
        return RandomDrafter(setup.runtime)

    fresh = Registry("drafter", "specdec.drafters")
    fresh.register("guess", construct)
    fresh.register("thing", lambda *_: 3)
    monkeypatch.setattr(drafters, "_registry", fresh)
    result = specdec.generate(fake_model(), [1], max_tokens=9, drafter="guess:a,b=c", draft_view="int4")
    assert seen == [("a,b=c", "int4", "bytes")]
    assert result.stats.drafted > 0
    with pytest.raises(PluginError, match="drafter 'thing' must have properties views and takes_effort"):
        specdec.generate(fake_model(), [1], drafter="thing")


def test_a_drafter_that_proposes_too_much_is_named():
    model = fake_model()
    with pytest.raises(SpecdecError, match="drafter 'RandomDrafter' drafted 6 tokens where 4 were allowed"):
        specdec.generate(model, [1, 2], drafter=RandomDrafter(model.runtime, excess=2), policy="fixed")


def test_unknown_view_or_drafter_lists_what_exists():
    with pytest.raises(UnknownNameError, match="unknown draft view 'int3': choose from auto, bucket, exact, int4"):
        specdec.generate(fake_model(), [1], draft_view="int3")
    told = "draft view 'bucket8' is not one that this runtime has for this model: choose from auto, bucket, exact, int4"
    with pytest.raises(UnknownNameError, match=told):
        specdec.generate(fake_model(), [1], draft_view="bucket8")
    with pytest.raises(UnknownNameError, match="draft view 'nested' needs quantised weights: choose from auto, bucket"):
        specdec.generate(fake_model(), [1], draft_view="nested")
    with pytest.raises(UnknownNameError, match="unknown drafter 'oracle': choose from chain, early-exit, effort"):
        specdec.generate(fake_model(), [1], drafter="oracle")
    with pytest.raises(InvalidArgumentError, match="takes head=\\.\\.\\., window=\\.\\.\\., not '0\\.3'"):
        specdec.generate(fake_model(), [1], drafter="effort:0.3")


def test_plain_decoding_needs_no_draft_view():
    model = fake_model(draft_noise={"other": 1.0})
    result = specdec.generate(model, [1], max_tokens=3, speculate=False)
    assert result.stats.draft_view is None
    assert model.runtime.prepared == []


def test_view_is_prepared_before_the_first_round():
    model = fake_model()
    specdec.stream(model, [1], draft_view="int4")
    assert model.runtime.prepared == ["int4"]
    assert model.runtime.passes == []


def test_efforts_of_a_schedule_keep_its_proportions():
    config = fake_config()
    base = EffortSchedule(0.4, {"layers.*.mlp.down": 0.1})
    scale = EffortScale(base, config)
    assert scale(scale.mean) is resolve_efforts(base, config)
    smaller = scale(scale.mean / 2)
    assert smaller.mean(config) == pytest.approx(scale.mean / 2, abs=1e-6)  # what scaled_to promises
    named = smaller.by_name(config)
    assert named["head"] / named["layers.0.mlp.down"] == pytest.approx(4)
    assert scale(scale.mean / 2) is smaller
    for step in range(600):  # forgets the oldest, still answers right
        assert scale((step + 1) / 1000).mean(config) == pytest.approx((step + 1) / 1000, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (EffortSchedule(), "dense"),
        (EffortSchedule(0.3, {"*": 1.0}), "dense"),
        (EffortSchedule(0.6), "effort 0.6"),
        (EffortSchedule(1.0, {"*": 0.25}), "effort 0.25"),
    ],
)
def test_what_the_output_is_identical_to(schedule, words):
    assert describe_target(schedule, fake_config()) == words


def test_what_a_mixed_schedule_is_identical_to():
    mixed = EffortSchedule(1.0, {"head": 0.5})
    expected = f"effort schedule (mean {mixed.mean(fake_config()):.3g})"
    assert describe_target(mixed, fake_config()) == expected
    assert specdec.generate(fake_model(), [1], max_tokens=1, verify_effort=mixed).identical_to == expected


@pytest.mark.parametrize("size", [2, 7, 33, 1023])
def test_signals_of_a_distribution(size):
    logits = (4 * np.random.default_rng(size).standard_normal(size)).astype(np.float32)
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    shape = LogitDistribution(logits.copy())
    # float32 exponentials: a relative error near 1e-6 in each term.
    assert shape.entropy == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5, abs=1e-6)
    assert shape.top_probability == pytest.approx(p.max(), rel=1e-5)
    top, second = np.sort(logits)[::-1][:2]
    assert shape.margin == float(top) - float(second)


def test_signals_with_impossible_tokens():
    shape = LogitDistribution(np.array([0, -np.inf, 0, -np.inf], np.float32))
    assert shape.entropy == pytest.approx(np.log(2), rel=1e-6)  # float32
    assert (shape.top_probability, shape.margin) == (0.5, 0.0)
