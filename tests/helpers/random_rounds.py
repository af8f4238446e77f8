"""Random answers for a policy: options, costs, matches, neighbours and results as they come, from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from policy_simulator import Level

from specdec.engine.policy import CostTable, DraftOption, DraftPlan, Knowledge, RoundOutcome, RoundState, StepSignals

EFFORT = DraftOption("effort", "int4", takes_effort=True)
OTHER_VIEW = DraftOption("effort", "bucket", takes_effort=True)
LATE = DraftOption("effort", "int4", takes_effort=True, waits=True)
WINDOWED = DraftOption("effort", "int4", takes_effort=True, windowed_from=60)
MODEL = DraftOption("model", "exact", takes_effort=False)
NGRAM = DraftOption("ngram", None, takes_effort=False)
RECYCLE = DraftOption("recycle", None, takes_effort=False, most_tokens=2)
TURNS = DraftOption("recycle", None, takes_effort=False, most_tokens=2, turn_rows=16)
SILENT = DraftOption("mine", None, takes_effort=False)  # cannot tell what it has found
OPTIONS = (
    (EFFORT, NGRAM, RECYCLE), (EFFORT, NGRAM, TURNS), (LATE, NGRAM, TURNS), (EFFORT,), (NGRAM, RECYCLE), (NGRAM, TURNS),
    (EFFORT, OTHER_VIEW, NGRAM), (MODEL, NGRAM, EFFORT, SILENT), (WINDOWED, NGRAM, RECYCLE),
)  # fmt: skip


class Machine:
    """What passes cost, and how often drafts are right, in one run."""

    def __init__(self, draw: random.Random, options: tuple[DraftOption, ...]) -> None:
        self.draw, self.options = draw, options
        self.unit_s = draw.choice([0.0009, 0.003, 0.02])
        self.row, self.step = draw.choice([0.02, 0.05, 0.15, 0.4, 1.0]), draw.uniform(0.05, 0.6)
        self.kept = draw.random()

    def table(self) -> CostTable:
        """What a measurement says; now and then nothing."""
        rows, unit_s = (1, 3, 5, 9), self.unit_s
        if self.draw.random() < 0.2:
            return CostTable()
        views = [(one.drafter, one.view, effort) for one in self.options if one.view for effort in (0.2, 0.5, 1.0)]
        turns = {1: unit_s, 4: 1.2 * unit_s, 8: 1.25 * unit_s, 16: 1.4 * unit_s}
        return CostTable(
            verify_s={count: self.cost(count) for count in rows},
            draft_s={key: self.unit_s * (self.step + 0.2 * key[2]) for key in views},
            verify_spread=dict.fromkeys(rows, self.draw.choice([0.05, 0.3])),
            turn_s=turns if self.draw.random() < 0.5 else {},
        )

    def cost(self, rows: int) -> float:
        """Seconds of a pass, give or take, and now and then a stall."""
        jitter = math.exp(self.draw.gauss(0, 0.05)) * (8 if self.draw.random() < 0.01 else 1)
        return self.unit_s * (1 + self.row * (rows - 1)) * jitter


def decisions(make: Callable[..., Any], seed: int) -> Iterator[str]:
    """What a policy decides in a few answers of one model, and what it has learnt at the end of each, as text.

    Args:
        make: makes the policy of an answer, from keyword arguments of `GoodputPolicy`.
        seed: of everything that happens.
    """
    draw = random.Random(seed)
    machine = Machine(draw, draw.choice(OPTIONS))
    table, memory = machine.table(), dict[Any, Any]()
    for _ in range(draw.choice([1, 2, 3])):
        policy = make(**draw.choice([{}, {}, {}, {"effort": 0.3}, {"explore": 0}]))
        policy.begin(Knowledge(costs=table, memory=memory))
        yield from _answer(policy, machine)
        yield repr((policy.costs(), policy.summary()))
        if draw.random() < 0.3:
            table = machine.table()


def _answer(policy: Any, machine: Machine) -> Iterator[str]:
    draw, options = machine.draw, machine.options
    position = draw.choice([5, 45, 190, 300])
    limit = position + draw.choice([3, 20, 60, 200])
    named = frozenset(one.drafter for one in options if draw.random() < 0.15)
    temperature, asked, beside, number = draw.choice([0.0, 0.0, 0.8]), draw.random() < 0.15, 0, 0
    while position < limit:
        if draw.random() < 0.04:
            beside = draw.choice([0, 0, 3, 15, 40])
        lengths = [draw.choice([0, 0, 1, 2, 3, 7, 20, 60]) if draw.random() < 0.5 else 0 for _ in options]
        state = RoundState(
            round_index=number, position=position, max_draft_tokens=limit - position - 1, draft_len=4,
            draft_effort=0.5, verify_effort=1.0, options=options, temperature=temperature, is_effort_asked=asked,
            matches={one.drafter: n for one, n in zip(options, lengths, strict=True) if one in (NGRAM, RECYCLE, TURNS)},
            distribution=_level(draw) if number else None, rows_beside=beside, named=named,
        )  # fmt: skip
        plan = policy.plan(state)
        efforts: list[float | None] = []
        emitted = _round(policy, machine, state, plan, efforts)
        yield f"{plan} {efforts}"
        position, number = position + emitted, number + 1


def _round(policy: Any, machine: Machine, state: RoundState, plan: DraftPlan, efforts: list[float | None]) -> int:
    """Run a round under a plan; returns its tokens. What `next_step` answers goes into `efforts`."""
    draw, most = machine.draw, min(plan.num_draft_tokens, state.max_draft_tokens)
    option = next((one for one in machine.options if (one.drafter, one.view) == (plan.drafter, plan.view)), None)
    signals: list[StepSignals] = []
    turns: tuple[int, ...] = ()
    drafted = accepted = ahead = 0
    if option is None or not most:
        ahead = draw.choice([0, 7, 15]) if not state.rows_beside and draw.random() < 0.3 else 0
    elif option is TURNS and not state.rows_beside:
        turns = tuple(min(most, int(draw.expovariate(1 / (0.05 + 3 * machine.kept)))) for _ in range(plan.turns))
        drafted, accepted = most * plan.turns, sum(turns)
    elif option.view is None:
        drafted = draw.randint(0, most)
        while accepted < drafted and draw.random() < machine.kept:
            accepted += 1
    else:
        signals, accepted = _draft(policy, machine, state, plan, efforts)
        drafted = len(signals)
    rows = 1 + drafted if not turns else 2
    verify_s, draft_s = machine.cost(state.rows_beside + rows) * max(1, len(turns)), sum(one.seconds for one in signals)
    policy.observe(
        RoundOutcome(
            drafted=drafted, accepted=accepted, signals=tuple(signals), drafter=plan.drafter if most else None,
            view=plan.view if most else None, context_length=state.position - 1, draft_s=draft_s, verify_s=verify_s,
            round_s=draft_s + verify_s, rows_beside=0 if turns else state.rows_beside, turns=turns, ahead=ahead,
            draft_share=draw.choice([1.0, 0.25]) if signals and state.rows_beside else 1.0,
        )
    )  # fmt: skip
    return accepted + max(1, len(turns)) + ahead


def _draft(
    policy: Any, machine: Machine, state: RoundState, plan: DraftPlan, efforts: list[float | None]
) -> tuple[list[StepSignals], int]:
    """The steps of a model's draft, and the number of tokens kept."""
    draw, most = machine.draw, min(plan.num_draft_tokens, state.max_draft_tokens)
    signals: list[StepSignals] = []
    accepted, is_kept = 0, True
    effort: float | None = plan.effort
    while len(signals) < most and effort is not None:
        level = _level(draw)
        signals.append(
            StepSignals(
                index=len(signals), position=state.position + len(signals), effort=effort,
                context_length=state.position - 1 + len(signals), drafter=plan.drafter or "", view=plan.view,
                seconds=machine.unit_s * (machine.step + 0.2 * effort) * math.exp(draw.gauss(0, 0.05)),
                distribution=level,
            )
        )  # fmt: skip
        is_kept = is_kept and draw.random() < machine.kept ** (1 / (0.3 + level.margin))
        accepted += is_kept
        effort = policy.next_step(signals[-1]) if len(signals) < most else None
        efforts.append(effort)
    return signals, accepted


def _level(draw: random.Random) -> Level:
    return Level(draw.expovariate(0.4))
