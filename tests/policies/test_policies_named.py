"""The default policy and a drafter that the caller named: it is tried at once, for two rounds, whatever it promises."""

from __future__ import annotations

import pytest
from specdec.policies.goodput.policy import GoodputPolicy

from specdec.engine.policy import CostTable, DraftOption, Knowledge, RoundOutcome, RoundState

# A further row costs as much as a pass, and a draft step more: by what was measured no draft can pay.
COSTS = CostTable(
    verify_s={rows: 0.01 * rows for rows in (1, 3, 5, 9)},
    draft_s={(name, "int4", effort): 0.02 for name in ("mine", "effort") for effort in (0.2, 0.5, 1.0)},
)


def drafted_in(
    policy: GoodputPolicy,
    *options: DraftOption,
    named: frozenset[str] = frozenset(),
    matches: tuple[int, ...] = (1,),
    accepted: bool = False,
    rounds: int = 12,
) -> list[str | None]:
    """Who drafted in each round; every draft is kept whole and free, or lost."""
    asked: list[str | None] = []
    for number in range(rounds):
        found = matches[min(number, len(matches) - 1)]
        state = RoundState(
            round_index=number,
            position=10 + number,
            max_draft_tokens=50,
            draft_len=4,
            draft_effort=0.5,
            verify_effort=1.0,
            options=options,
            is_effort_asked=False,
            matches={one.drafter: found for one in options if one.view is None},
            named=named,
        )
        plan = policy.plan(state)
        length = plan.num_draft_tokens
        drafter = plan.drafter or options[0].drafter if length else None
        asked.append(drafter)
        verify_s = 0.01 if accepted else 0.01 * (length + 1)
        policy.observe(
            RoundOutcome(
                drafted=length,
                accepted=length if accepted else 0,
                signals=(),
                drafter=drafter,
                view=plan.view,
                context_length=9 + number,
                draft_s=0.0001 if length else 0.0,
                verify_s=verify_s,
                round_s=verify_s,
            )
        )
    return asked


def goodput(memory: dict[object, object] | None = None, **options: float) -> GoodputPolicy:
    policy = GoodputPolicy(**options)  # type: ignore[arg-type]
    policy.begin(Knowledge(costs=COSTS, memory={} if memory is None else memory))
    return policy


MINE = DraftOption("mine", None, takes_effort=False)
READER = DraftOption("mine", "int4", takes_effort=False)
EFFORT = DraftOption("effort", "int4", takes_effort=True)


@pytest.mark.parametrize("option", [MINE, READER, EFFORT])
def test_a_named_drafter_is_tried_at_once(option: DraftOption) -> None:
    assert drafted_in(goodput(), option)[0] is None  # left open, it is not expected to pay
    tried = drafted_in(goodput(), option, named=frozenset({option.drafter}))
    assert tried[:2] == [option.drafter] * 2
    assert tried[2:].count(None) >= 8


def test_what_turns_out_to_pay_stays() -> None:
    assert drafted_in(goodput(), MINE, named=frozenset({"mine"}), accepted=True, rounds=30).count("mine") > 15


def test_one_drafter_after_the_other_and_each_when_it_has_something() -> None:
    other = DraftOption("other", None, takes_effort=False)
    tried = drafted_in(goodput(), MINE, other, named=frozenset({"mine", "other"}))
    assert tried[:5] == ["mine", "mine", "other", "other", None]
    tried = drafted_in(goodput(), MINE, named=frozenset({"mine"}), matches=(0, 0, 0, 1))
    assert tried[:6] == [None, None, None, "mine", "mine", None]


def test_once_for_a_model_and_never_without_trials() -> None:
    memory: dict[object, object] = {}
    assert drafted_in(goodput(memory), MINE, named=frozenset({"mine"}), rounds=3) == ["mine", "mine", None]
    assert drafted_in(goodput(memory), MINE, named=frozenset({"mine"}), rounds=3) == [None, None, None]
    assert drafted_in(goodput(explore=0.0), MINE, named=frozenset({"mine"}), rounds=3) == [None, None, None]
