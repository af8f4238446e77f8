"""Turns that a runtime drafts and verifies by itself: the same tokens, several rounds a pass, all of them counted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import fake_runtime
import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime
from specdec.policies.goodput.policy import GoodputPolicy

import specdec
from specdec.drafters.hindsight import Hindsight
from specdec.engine.policy import DraftPlan, Knowledge, RoundOutcome, RoundState, StepSignals
from specdec.errors import InvalidArgumentError, ModelOutputError, PluginError
from specdec.model.effort import resolve_efforts
from specdec.model.loaded import Model
from specdec.runtimes.base import Late, Recycling, Rows, ViewInfo
from specdec.runtimes.checks import check_batch

PROMPT = list(b"the quick brown fox, the quick brown dog, the quick")


class Turning:
    """Asks for turns in every round."""

    def __init__(self, turns: int = 4, rows: int = 8) -> None:
        self.turns, self.rows = turns, rows
        self.states: list[RoundState] = []
        self.outcomes: list[RoundOutcome] = []

    def plan(self, state: RoundState) -> DraftPlan:
        self.states.append(state)
        length = min(self.rows - 1, state.max_draft_tokens)
        return DraftPlan(num_draft_tokens=length, effort=1.0, drafter="recycle", turns=self.turns if length else 1)

    def next_step(self, signals: StepSignals) -> float | None:
        raise AssertionError(signals)

    def observe(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)


def model_of(recycles: int = 16, *, seed: int = 3, most_ahead: int | None = 15) -> Model:
    return Model(FakeRuntime(seed=seed, most_ahead=most_ahead, recycles=recycles), ByteTokenizer())


def plain(count: int, seed: int = 3) -> list[int]:
    return specdec.generate(model_of(0, seed=seed), PROMPT, max_tokens=count, speculate=False).tokens


@pytest.fixture
def knowing(monkeypatch):
    """Turns whose drafts are right for some tokens, each with a wrong sibling."""
    answer = plain(200)

    def drafted(text: Sequence[int], rows: int) -> list[int]:
        done, tokens = len(text) - len(PROMPT), list[int]()
        for step in range(done * 7 % 5):
            right = answer[done + step]
            wrong = (right + 1) % 200
            if len(tokens) + 2 >= rows:
                break
            tokens += [right, wrong] if step + 1 < done * 7 % 5 or done % 3 else [wrong, (wrong + 1) % 200]
        return tokens

    monkeypatch.setattr(fake_runtime, "drafted_of", drafted)
    return answer


@pytest.mark.parametrize(("turns", "rows"), [(1, 16), (4, 8), (16, 5)])
@pytest.mark.parametrize("count", [60, 23, 2])
def test_tokens_are_those_of_plain_decoding(knowing, shown, turns, rows, count):
    policy = Turning(turns, rows)
    result = specdec.generate(model_of(), PROMPT, max_tokens=count, policy=policy)
    assert result.tokens == knowing[:count]
    stats = result.stats
    assert stats.emitted == count
    assert stats.accepted + stats.rounds - stats.cut == count
    assert sum(outcome.accepted for outcome in policy.outcomes) == stats.accepted
    assert sum(outcome.drafted for outcome in policy.outcomes) == stats.drafted
    assert [sum(outcome.turns) for outcome in policy.outcomes if outcome.turns] == [
        outcome.accepted for outcome in policy.outcomes if outcome.turns
    ]
    passes = [one for one in shown if one.logits == "choices"]
    if count == 60:
        assert stats.accepted > 10
        assert stats.by_drafter["recycle"]["accepted"] == stats.accepted
        assert len(passes) == len(policy.outcomes) <= stats.rounds
        assert turns == 1 or len(passes) < stats.rounds
    for one in passes:
        assert one.recycling is None or one.recycling.limit == len(PROMPT) + count


def test_streams_show_each_turn_and_leave_the_cache_as_it_should_be(knowing):
    model = model_of()
    model.prompt_cache = specdec.PromptCache()
    taken: list[int] = []
    with specdec.stream(model, PROMPT, max_tokens=90, policy=Turning(16, 8)) as answer:
        while len(taken) < 12:
            taken += next(answer).tokens
    assert taken == knowing[: len(taken)]
    again = specdec.generate(model, [*PROMPT, *knowing[:40]], max_tokens=20, speculate=False)
    assert again.tokens == knowing[40:60]
    assert again.stats.cached_prompt_tokens == len(PROMPT) + len(taken) - 1


def test_it_ends_at_an_end_token(knowing):
    end = knowing[20]
    result = specdec.generate(model_of(), PROMPT, max_tokens=60, policy=Turning(), stop_token_ids=[end])
    assert result.tokens == knowing[: knowing.index(end) + 1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "seed": 5},
        {"logprobs": 2},
        {"logit_bias": {65: 3.0}},
        {"verify_effort": 0.5},
        {"trust": 0.2},
    ],
    ids=str,
)
def test_where_logits_are_needed_the_runtime_drafts_nothing(shown, options):
    known = {name: value for name, value in options.items() if name != "trust"}
    wanted = specdec.generate(model_of(0, most_ahead=None), PROMPT, max_tokens=40, speculate=False, **known)
    policy = Turning()
    found = specdec.generate(model_of(), PROMPT, max_tokens=40, policy=policy, **options)
    assert found.tokens == wanted.tokens or "trust" in options
    assert all(one.recycling is None for one in shown)
    assert all(option.turn_rows == 0 for state in policy.states for option in state.options)
    assert {option.turn_rows for option in specdec_options()} == {0, 16}


def specdec_options() -> tuple[Any, ...]:
    policy = Turning()
    specdec.generate(model_of(), PROMPT, max_tokens=4, policy=policy)
    return policy.states[0].options


class Learning(Turning):
    """The same by a policy that learns, and so need not have every view."""

    def begin(self, knowledge: Knowledge) -> None:
        """What is known is not used."""


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 5}], ids=str)
def test_a_view_that_takes_long_to_make_is_drafted_with_only_if_asked_for(options):
    def offered(recycles: int, drafter: str) -> set[str | None]:
        model, policy = model_of(recycles), Learning()
        views = {name: ViewInfo(name=name, late=Late(exact_s=1.0, view_s=0.1)) for name in model.runtime.views()}
        model.runtime.views = lambda: views  # type: ignore[method-assign]
        specdec.generate(model, PROMPT, max_tokens=4, policy=policy, drafter=drafter, **options)
        return {option.view for state in policy.states for option in state.options}

    assert offered(16, "auto") == {None}
    assert offered(16, "effort;recycle") > {None}
    assert offered(0, "auto") > {None}


def test_several_sequences_draft_on_the_host(shown):
    prompts = [PROMPT, PROMPT[:20], PROMPT[5:33]]
    wanted = [specdec.generate(model_of(0), one, max_tokens=30, speculate=False).tokens for one in prompts]
    del shown[:]
    found = specdec.generate(model_of(), prompts, max_tokens=30)
    assert [one.tokens for one in found] == wanted


@pytest.mark.parametrize("seed", range(3))
def test_the_default_policy_keeps_the_tokens(seed):
    wanted = plain(80, seed)
    result = specdec.generate(model_of(seed=seed), PROMPT, max_tokens=80)
    assert result.tokens == wanted


def test_a_policy_must_ask_for_whole_turns():
    with pytest.raises(PluginError, match="turns must be a whole number of at least 1, not 0"):
        specdec.generate(model_of(), PROMPT, max_tokens=8, policy=Turning(turns=0))


def test_a_choice_that_means_nothing_ends_the_answer(knowing, monkeypatch):
    chosen = fake_runtime.choice_of

    def broken(logits: np.ndarray) -> Any:
        broken.calls += 1  # type: ignore[attr-defined]
        choice = chosen(logits)
        return choice._replace(highest=float("nan")) if broken.calls == 30 else choice  # type: ignore[attr-defined]

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(fake_runtime, "choice_of", broken)
    model, taken = model_of(), list[int]()
    model.prompt_cache = specdec.PromptCache()
    with (
        specdec.stream(model, PROMPT, max_tokens=90, policy=Turning(16, 8)) as answer,
        pytest.raises(ModelOutputError),
    ):
        taken.extend(token for piece in answer for token in piece.tokens)
    assert taken == knowing[: len(taken)]
    again = specdec.generate(model, [*PROMPT, *knowing[:40]], max_tokens=20, speculate=False)
    assert again.tokens == knowing[40:60]


def test_rows_that_recycle_are_checked():
    runtime = FakeRuntime(most_ahead=4, recycles=8)
    cache, efforts = runtime.new_cache(40), resolve_efforts(1.0, runtime.config)
    for tokens, logits in (([1, 2], "choices"), ([1], "all")):
        rows = Rows(cache, tokens, efforts, logits=logits, recycling=Recycling([1], 4, 40))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="drafts by itself from a single row"):
            check_batch([rows], runtime.config, type(cache), chooses=True)


def test_turns_know_whose_text_it_is(shown):
    model = model_of()
    specdec.generate(model, PROMPT, max_tokens=12, policy=Turning())
    with specdec.Batch(model) as batch:
        list(batch.submit(PROMPT, owner="someone", max_tokens=12, policy=Turning()))
    wishes = [one.recycling for one in shown if one.recycling is not None]
    assert {wish.owner for wish in wishes} == {None, "someone"}


@pytest.mark.parametrize(
    ("options", "first"), [({}, 2), ({"drafter": "ngram;recycle"}, 0), ({"logprobs": 1}, 0)], ids=str
)
def test_the_first_rounds_of_an_answer_go_by_without_the_policy(options, first, monkeypatch) -> None:
    """Where the runtime drafts by itself and the caller named no drafter; rounds are counted all the same."""
    asked: list[int] = []
    plan = GoodputPolicy.plan
    monkeypatch.setattr(GoodputPolicy, "plan", lambda self, state: asked.append(state.round_index) or plan(self, state))
    model = Model(FakeRuntime(seed=3, most_ahead=15, recycles=8), ByteTokenizer())
    found = specdec.generate(model, PROMPT, max_tokens=40, ignore_eos=True, **options)
    assert asked[0] == first
    assert asked == list(range(first, first + len(asked)))
    assert found.tokens == specdec.generate(model, PROMPT, max_tokens=40, ignore_eos=True, speculate=False).tokens


def test_a_policy_may_not_ask_for_nonsense_quiet(monkeypatch) -> None:
    monkeypatch.setattr(GoodputPolicy, "quiet_rounds", -1)
    model = Model(FakeRuntime(seed=3, most_ahead=15, recycles=8), ByteTokenizer())
    with pytest.raises(PluginError, match="quiet_rounds must be a whole number of at least 0"):
        specdec.generate(model, PROMPT, max_tokens=4)


class Alternating(Learning):
    """The same with a plain round after each other one."""

    def plan(self, state: RoundState) -> DraftPlan:
        found = super().plan(state)
        return found if len(self.states) % 2 else DraftPlan(num_draft_tokens=0, effort=1.0)


@pytest.mark.parametrize("recycles", [0, 16])
def test_a_policy_that_learns_is_told_what_turns_would_have_kept(knowing, recycles) -> None:
    policy, told = Alternating(), Turning()
    model = model_of(recycles)
    model.memory.drafters.successors = {token: [following] for token, following in pairwise(knowing[:60])}
    if recycles:
        specdec.generate(model, PROMPT, max_tokens=60, policy=told)
        assert not any(state.missed for state in told.states)
    specdec.generate(model, PROMPT, max_tokens=60, policy=policy)
    hindsight, text = Hindsight(len(PROMPT), model.memory.drafters.successors), [*PROMPT, *knowing]
    for state in policy.states:
        assert list(state.missed) == (hindsight.kept(text[: state.position]) if recycles else [])
    assert any(sum(state.missed) for state in policy.states) == bool(recycles)
