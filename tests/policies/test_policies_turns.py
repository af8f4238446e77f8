"""When the default policy asks for turns of the runtime's own, by what they bring and cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from specdec.policies.goodput.learnt import Learnt
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.goodput.turn_results import WIDTHS, TurnResults
from specdec.policies.goodput.turns import TurnPlanner

from specdec.engine.policy import CostTable, DraftOption, DraftPlan, Knowledge, RoundOutcome, RoundState

STEP_S = 0.001
OPTIONS = (
    DraftOption("ngram", None, takes_effort=False),
    DraftOption("recycle", None, takes_effort=False, most_tokens=2, turn_rows=16),
)


def begun(
    memory: dict[Any, Any] | None = None, rows: dict[int, float] | None = None, turns: dict[int, float] | None = None
) -> GoodputPolicy:
    policy = GoodputPolicy()
    steps = {1: 1.2} | (rows or {3: 1.4, 5: 1.5, 9: 1.8})
    table = CostTable(
        verify_s={count: one * STEP_S for count, one in steps.items()},
        turn_s={count: one * STEP_S for count, one in (turns or {}).items()},
    )
    policy.begin(Knowledge(costs=table, memory={} if memory is None else memory))
    return policy


def state_at(position: int, number: int, match: int, **more: Any) -> RoundState:
    options = more.pop("options", OPTIONS)
    return RoundState(
        round_index=number, position=position, max_draft_tokens=400 - position, draft_len=4, draft_effort=1.0,
        verify_effort=1.0, options=options, is_effort_asked=False, matches={"recycle": match}, **more,
    )  # fmt: skip


def run(
    policy: GoodputPolicy, kept: int, costs: dict[int, float], *, rounds: int = 60, match: int = 0, every: int = 1
) -> list[DraftPlan]:
    """Rounds of a text each of whose turns keeps `kept` tokens; every so many rounds there is a match. The engine does
    not ask about the first ones."""
    position, plans = 50, []
    for number in range(rounds):
        if number < policy.quiet_rounds:
            plans.append(DraftPlan(num_draft_tokens=0, effort=1.0))
            position += 1
            continue
        plan = policy.plan(state_at(position, number, match if number % every == 0 else 0))
        plans.append(plan)
        if plan.num_draft_tokens:
            assert plan.drafter == "recycle"
            turns = (min(kept, plan.num_draft_tokens),) * plan.turns
            seconds = STEP_S * (0.2 + len(turns) * costs[plan.num_draft_tokens + 1])
            drafted = plan.num_draft_tokens * len(turns)
        else:
            turns, seconds, drafted = (), STEP_S, 0
        policy.observe(
            RoundOutcome(
                drafted=drafted, accepted=sum(turns), signals=(), drafter=plan.drafter, view=None,
                context_length=position, draft_s=0.0, verify_s=seconds, round_s=seconds, turns=turns,
            )
        )  # fmt: skip
        position += 1 + len(turns) + sum(turns) if turns else 1
        if position > 390:
            break
    return plans


CHEAP = {4: 1.15, 8: 1.2, 16: 1.3}
DEAR = {1: 1.0, 4: 1.5, 8: 1.7, 16: 1.9}  # more than turns usually bring


def test_a_text_begins_with_turns_where_they_cost_little_and_goes_on_if_they_pay():
    wanted = run(begun(turns={1: 1.0} | CHEAP), 2, CHEAP)
    assert all(plan.num_draft_tokens for plan in wanted[2:])
    vain = run(begun(turns={1: 1.0} | CHEAP), 0, CHEAP, rounds=100)
    assert vain[2].num_draft_tokens
    assert sum(plan.turns for plan in vain if plan.num_draft_tokens) <= 32
    assert not any(plan.num_draft_tokens for plan in vain[30:50])


def test_where_turns_are_dear_as_many_are_tried_as_may_be_lost():
    plans = run(begun(turns=DEAR), 0, DEAR, match=0, rounds=300)
    tried = [number for number, plan in enumerate(plans) if plan.num_draft_tokens]
    assert len(tried) >= 1
    assert tried[0] >= 28
    assert all(plans[number].turns == 4 for number in tried)
    lost, tokens = 0.0, 0
    for plan in plans:
        width = plan.num_draft_tokens + 1
        tokens += plan.turns
        lost += plan.turns * (DEAR[width] - 1) + 0.2 if width > 1 else 0.0
        assert lost <= 0.02 * tokens + 8 * (DEAR[4] - 1) + 0.2  # a trial that brings nothing is lost whole


def test_trials_find_that_turns_pay():
    plans = run(begun(turns=DEAR), 3, DEAR, match=0, rounds=100)
    first = next(number for number, plan in enumerate(plans) if plan.num_draft_tokens)
    assert 28 <= first <= 60
    assert all(plan.num_draft_tokens for plan in plans[first:])


def test_a_long_prompt_is_likely_to_be_quoted():
    assert not begun(turns=DEAR).plan(state_at(50, 2, 0)).num_draft_tokens
    assert begun(turns=DEAR).plan(state_at(300, 2, 0)).num_draft_tokens


@pytest.mark.parametrize("prompt", [50, 300])
def test_the_first_tokens_do_not_wait_for_a_decision(prompt):
    policy = begun()
    assert policy.quiet_rounds == 2
    assert policy.summary() == {}
    assert policy.plan(state_at(prompt + 2, 2, 24)).num_draft_tokens > 0
    assert policy.summary()["parked_rounds"] == 0
    assert begun().plan(state_at(50, 0, 24, named=frozenset({"recycle"}))).num_draft_tokens > 0


def test_turns_that_pay_become_many():
    plans = run(begun(), 6, CHEAP, match=5)
    turns = [plan.turns for plan in plans if plan.num_draft_tokens]
    assert turns[0] <= 4
    assert max(turns) == 16
    assert len(turns) >= len(plans) - 2
    assert max(plan.num_draft_tokens for plan in plans) >= 7


def test_turns_that_bring_nothing_end_soon():
    plans = run(begun(), 0, {4: 1.3, 8: 1.6, 16: 2.0}, match=3, every=2)
    turns = sum(plan.turns for plan in plans if plan.num_draft_tokens)
    assert 1 <= turns <= 20
    assert not any(plan.num_draft_tokens for plan in plans[-10:])


def test_dear_rows_make_narrow_trees():
    wide = run(begun(), 3, {4: 1.3, 8: 1.32, 16: 1.35}, match=8)
    narrow = run(begun(rows={3: 1.5, 5: 2.0, 9: 3.5}), 3, {4: 1.3, 8: 2.6, 16: 5.2}, match=8)
    assert narrow[-1].num_draft_tokens == 3
    assert wide[-1].num_draft_tokens > 3


def test_what_turns_cost_is_remembered_and_what_they_bring_hardly():
    memory: dict[Any, Any] = {}
    run(begun(memory), 6, CHEAP, match=5)
    plan = begun(memory).plan(state_at(50, 0, 0))
    assert plan.turns <= 4
    (results,) = (one.turns["recycle"] for one in memory.values() if isinstance(one, Learnt))
    assert results.costs
    before = results.tokens(2)
    results.new_text()
    assert results.tokens(2) < before
    assert results.costs


@pytest.mark.parametrize("more", [{"rows_beside": 2}, {"options": tuple(OPTIONS[:1])}], ids=str)
def test_there_are_none_beside_others_or_where_the_runtime_drafts_nothing(more):
    policy = begun()
    for number in range(30):
        plan = policy.plan(state_at(50 + number, number, 9, **more))
        assert plan.turns == 1
        policy.observe(
            RoundOutcome(
                drafted=plan.num_draft_tokens, accepted=0, signals=(), drafter=plan.drafter, view=None,
                context_length=50, draft_s=1e-6, verify_s=STEP_S, round_s=STEP_S,
                rows_beside=more.get("rows_beside", 0),
            )
        )  # fmt: skip


def test_narrow_turns_say_what_wide_ones_would_keep():
    results = TurnResults()
    for _ in range(20):
        results.learn(4, (3, 3), 1.2)
    kept = [results.tokens(place) - 1 for place in range(len(WIDTHS))]
    assert kept == sorted(kept)
    assert kept[0] == pytest.approx(3, rel=0.2)
    verify = [0.0, 1.0, 1.02, 1.05, *[1.1] * 30]
    assert results.cost(0, verify) == pytest.approx(1.2)
    assert results.cost(2, verify) > results.cost(1, verify) > 1.2
    dear = [0.0, *[1.0 + 0.3 * rows for rows in range(24)]]
    assert results.cost(2, dear) > 1.8
    for _ in range(100):
        results.learn(16, (1,), 1.5)
    assert results.tokens(2) - 1 == pytest.approx(1, rel=0.3)


def observed(policy: GoodputPolicy, position: int, seconds: float, *, ahead: int = 0) -> None:
    policy.observe(
        RoundOutcome(
            drafted=0, accepted=0, signals=(), drafter=None, view=None, context_length=position, draft_s=0.0,
            verify_s=seconds, round_s=seconds, ahead=ahead,
        )
    )  # fmt: skip


def test_measured_costs_decide_which_match_is_worth_a_turn():
    cheap, dear = ({1: 0.8, 4: cost, 8: cost, 16: cost} for cost in (0.9, 4.0))
    plans = [begun(turns=turns).plan(state_at(50, 2, 3)) for turns in (cheap, dear)]
    assert plans[0].num_draft_tokens > 0
    assert plans[1].num_draft_tokens == 0
    results = TurnResults.measured(dear)
    assert results.costs == pytest.approx({4: 5.0, 8: 5.0, 16: 5.0})
    assert results.plain_s == 0.8


@pytest.fixture
def looks(monkeypatch):
    """Rounds in which the policy has looked at turns."""
    found: list[int] = []
    choose = TurnPlanner.choose

    def counted(planner: TurnPlanner, now: Any, best: Any) -> Any:
        found.append(now.state.round_index)
        return choose(planner, now, best)

    monkeypatch.setattr(TurnPlanner, "choose", counted)
    return found


def test_after_a_look_only_a_match_that_pays_or_many_rounds_bring_the_next_one(looks):
    policy = begun(turns=DEAR)
    for number in range(policy.quiet_rounds, 27):
        match = 12 if number == 5 else number % 2
        plan = policy.plan(state_at(50 + number, number, match))
        assert (plan.num_draft_tokens > 0) == (number == 5)
        if number == 5:
            assert looks == [2, 5]
            turns = (0,) * plan.turns
            policy.observe(
                RoundOutcome(
                    drafted=3 * len(turns), accepted=0, signals=(), drafter="recycle", view=None, context_length=54,
                    draft_s=0.0, verify_s=STEP_S, round_s=STEP_S, turns=turns,
                )
            )  # fmt: skip
        else:
            observed(policy, 50 + number, STEP_S)
    assert looks == [2, 5, 14, 26]
    assert policy.summary()["parked_rounds"] == 24


def test_turns_are_measured_against_plain_steps_of_passes_that_go_ahead():
    results = TurnResults(plain_s=1.0)
    for _ in range(50):
        results.saw_plain(5.0, 0)
        results.saw_plain(1.2, 15)
    assert results.plain_s == pytest.approx(1.2, rel=0.01)
    results.saw_plain(100.0, 15)  # a stall
    assert results.plain_s < 1.4
    policy = begun(turns={1: 1.0, 4: 1.3, 8: 1.5, 16: 1.6})
    policy.plan(state_at(50, 2, 0))
    observed(policy, 50, 0.9 * STEP_S, ahead=15)
    assert policy._turns.results is not None
    assert 0.9 * STEP_S < policy._turns.results.plain_s < STEP_S


def test_answers_of_few_tokens_are_not_delayed():
    """Nothing is drafted that could not pay for its launch any more."""
    turns = {1: 1.0, 4: 1.75, 8: 1.9, 16: 2.1}
    quoted = state_at(300, 2, 0)
    plans = [begun(turns=turns).plan(replace(quoted, max_draft_tokens=most)) for most in (100, 20, 1, 0)]
    assert [bool(plan.num_draft_tokens) for plan in plans] == [True, True, False, False]


def test_turns_begin_where_plain_steps_show_that_they_pay_and_only_there():
    """A guess decides only for a runtime that does not tell what turns would have kept."""

    def plans(missed: list[int], turns: dict[int, float], prompt: int = 50) -> list[DraftPlan]:
        policy, found = begun(turns=turns), []
        for number in range(2, 30):
            found.append(policy.plan(state_at(prompt + number, number, 0, missed=missed)))
            if found[-1].num_draft_tokens:
                break
            observed(policy, prompt + number, STEP_S)
        return found

    usual = {1: 1.0, 4: 1.31, 8: 1.385, 16: 1.8}
    assert begun(turns=usual).plan(state_at(52, 2, 0)).num_draft_tokens
    assert not any(plan.num_draft_tokens for plan in plans([0, 0], usual))
    assert (
        begun(turns=usual).plan(state_at(302, 2, 0, missed=[0])).num_draft_tokens
    )  # a long prompt is likely to be quoted
    for turns in (usual, DEAR):
        told = plans([3], turns)
        assert 1 <= len(told) <= 8
        assert told[-1].num_draft_tokens
        assert told[-1].turns == 4


def test_plain_steps_between_looks_bring_the_next_one_if_turns_pay_by_them(looks):
    policy = begun(turns=DEAR)
    for number in range(2, 14):
        missed = [0] if number < 5 else [7]
        if policy.plan(state_at(50 + number, number, 0, missed=missed)).num_draft_tokens:
            break
        observed(policy, 50 + number, STEP_S)
    assert looks[:2] == [2, 5]
    assert number < 8


def test_what_turns_kept_is_not_counted_again():
    policy = begun(turns={1: 1.0} | CHEAP)
    assert policy.plan(state_at(302, 2, 0)).num_draft_tokens
    (results,) = policy._learnt.turns.values()  # type: ignore[union-attr]
    policy.observe(
        RoundOutcome(
            drafted=28, accepted=4, signals=(), drafter="recycle", view=None, context_length=302, draft_s=0.0,
            verify_s=4 * STEP_S, round_s=4 * STEP_S, turns=(1, 1, 1, 1),
        )
    )  # fmt: skip
    seen = results.seen
    assert seen > 3
    policy.plan(state_at(310, 3, 0, missed=[1, 1, 1, 1]))
    assert results.seen == seen
