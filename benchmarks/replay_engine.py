"""Rounds over recorded answers at fixed costs, to compare policies on a noisy machine.

A recording holds, for every position of an answer, what a draft step at each effort proposes after the exact history,
and how sure it is of it. So acceptance is the model's own, costs are measured once and the same for all, and a policy's
decisions are the only thing that differs. Drafted history is left out: after several drafted tokens a draft step sees
keys and values of draft quality, which the recording does not know. `policy_replay` records and reports.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.drafters.acceptance import ProposalBook
from specdec.drafters.chain import WORTH_KEEPING
from specdec.drafters.ngram import UNTRIED
from specdec.drafters.suffix_index import SuffixIndex
from specdec.engine.policy import (
    CostTable,
    DraftOption,
    DraftPlan,
    Knowledge,
    Learner,
    Policy,
    Reporter,
    RoundOutcome,
    RoundState,
    StepSignals,
)

LOOKUP = DraftOption("ngram", None, takes_effort=False)
CHAIN_NAME = "chain"  # a proposal of the lookup, or else the model's draft, in this order
LOOKUP_S = 2e-5  # seconds of a lookup, about
SHORTEST, LONGEST = 2, 64  # tokens of a lookup's match, the drafter's defaults


@dataclass(frozen=True, slots=True)
class Shown:
    """What a step's logits looked like; see `specdec.engine.policy.Distribution`."""

    entropy: float
    top_probability: float
    margin: float


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an answer.

    Attributes:
        exact: the distribution that it was drawn from.
        drafts: by effort, the token that a draft step proposes here, and its distribution.
    """

    exact: Shown
    drafts: Mapping[float, tuple[int, Shown]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A recorded answer: `tokens` are those of the prompt, `prompt_length` many, and the answer's."""

    task: str
    prompt_length: int
    tokens: Sequence[int]
    positions: Sequence[Position]


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of an exact pass by its rows and of a draft step by its effort, straight lines in between."""

    verify_s: Mapping[int, float]
    draft_s: Mapping[float, float]

    def verify(self, rows: int) -> float:
        """Seconds of a pass over `rows` rows."""
        return _between(self.verify_s, rows)

    def draft(self, effort: float) -> float:
        """Seconds of a draft step."""
        return _between(self.draft_s, effort)


@dataclass(slots=True)
class Score:
    """Tokens and seconds of one contender on one task."""

    tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Replay:
    """Runs a policy over recorded answers, one after another, as a program that loads a model once would.

    Attributes:
        costs: what a round is charged.
        view: draft view of the recording.
        temperature: that the answers were drawn at.
        jitter: standard deviation of the logarithm of the times that the policy is told; it is charged without.
        seed: of the jitter.
    """

    costs: Costs
    view: str
    temperature: float
    jitter: float = 0.05
    seed: int = 0
    _random: random.Random = field(init=False)
    _memory: dict[Any, Any] = field(default_factory=dict, init=False)
    _table: CostTable = field(init=False)
    _book: ProposalBook = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        told = {rows: self._told(self.costs.verify(rows)) for rows in (1, 3, 5, 9)}
        drafts = {("effort", self.view, effort): self._told(self.costs.draft(effort)) for effort in (0.2, 0.5, 1.0)}
        self._table = CostTable(verify_s=told, draft_s=drafts)

    def run(self, policy: Policy, answer: Answer, options: tuple[DraftOption, ...], score: Score) -> None:
        """One answer by a policy of its own, which shares the memory of those before it."""
        if isinstance(policy, Learner):
            policy.begin(Knowledge(costs=self._table, memory=self._memory))
        index = SuffixIndex()
        self._book = ProposalBook(UNTRIED)
        position, rounds = answer.prompt_length, 0
        while position < len(answer.tokens):
            position += self._round(policy, answer, options, score, index, position, rounds)
            rounds += 1
        if isinstance(policy, Reporter):
            policy.summary()  # asked for at the end of a generation: what was not learnt from yet is learnt now

    def _round(
        self,
        policy: Policy,
        answer: Answer,
        options: tuple[DraftOption, ...],
        score: Score,
        index: SuffixIndex,
        position: int,
        rounds: int,
    ) -> int:
        """Play a round; returns the tokens that it emitted."""
        history = answer.tokens[:position]
        index.follow(history)
        last = answer.positions[position - 1 - answer.prompt_length].exact if rounds else None
        state = RoundState(
            round_index=rounds,
            position=position,
            max_draft_tokens=len(answer.tokens) - position - 1,
            draft_len=4,
            draft_effort=1.0,
            verify_effort=1.0,
            options=options,
            temperature=self.temperature,
            is_effort_asked=False,
            matches=self._matches(options, index),
            distribution=last,
        )
        plan = policy.plan(state)
        length = min(plan.num_draft_tokens, state.max_draft_tokens)
        drafter = (plan.drafter or options[0].drafter) if length else None
        signals: list[StepSignals] = []
        charged = told = 0.0
        drafted: list[int] = []
        if drafter == LOOKUP.drafter:
            drafted = self._look_up(index, length)
            charged = told = LOOKUP_S
        elif drafter == CHAIN_NAME:
            drafted = self._first_of_chain(index, history, length)
            charged = told = LOOKUP_S if drafted else 0.0
        if drafter != LOOKUP.drafter and not drafted:
            drafted, charged = self._draft(policy, plan, answer, position, length if drafter else 0, signals)
            told = sum(one.seconds for one in signals)
        accepted = 0
        while accepted < len(drafted) and drafted[accepted] == answer.tokens[position + accepted]:
            accepted += 1
        verify = self.costs.verify(len(drafted) + 1)
        told_verify = self._told(verify)
        policy.observe(
            RoundOutcome(
                drafted=len(drafted),
                accepted=accepted,
                signals=tuple(signals),
                drafter=drafter,
                view=None if drafter in (None, LOOKUP.drafter) else self.view,
                context_length=position - 1,
                draft_s=told,
                verify_s=told_verify,
                round_s=told + told_verify,
            )
        )
        score.tokens += accepted + 1
        score.seconds += charged + verify
        score.drafted += len(drafted)
        score.accepted += accepted
        return accepted + 1

    def _draft(
        self,
        policy: Policy,
        plan: DraftPlan,
        answer: Answer,
        position: int,
        length: int,
        signals: list[StepSignals],
    ) -> tuple[list[int], float]:
        """Draft steps under the policy: their tokens, and what they are charged."""
        drafted: list[int] = []
        charged = 0.0
        effort: float | None = plan.effort
        while len(drafted) < length and effort is not None:
            token, shown = answer.positions[position - answer.prompt_length + len(drafted)].drafts[effort]
            seconds = self.costs.draft(effort)
            signals.append(
                StepSignals(
                    index=len(drafted),
                    position=position + len(drafted),
                    effort=effort,
                    context_length=position - 1 + len(drafted),
                    drafter=plan.drafter or "effort",
                    view=self.view,
                    seconds=self._told(seconds),
                    distribution=shown,
                )
            )
            drafted.append(token)
            charged += seconds
            effort = policy.next_step(signals[-1]) if len(drafted) < length else None
        return drafted, charged

    @staticmethod
    def _matches(options: Sequence[DraftOption], index: SuffixIndex) -> dict[str, int]:
        """What drafters that can tell beforehand have found; the last level of the chain has always something."""
        found = index.continuation(index.shorten(index.end(), LONGEST), SHORTEST)[1]
        return {one.drafter: max(found, int(one.drafter == CHAIN_NAME)) for one in options if one.drafter != "effort"}

    def _first_of_chain(self, index: SuffixIndex, history: Sequence[int], length: int) -> list[int]:
        """The lookup's proposal where it is likely to be kept, by the rule of `ChainDrafter`; else nothing."""
        self._book.learn(history)
        match = index.continuation(index.shorten(index.end(), LONGEST), SHORTEST)[1]
        found = self._look_up(index, length)
        self._book.note(match, len(history), found)
        return found if found and self._book.rate(match) >= WORTH_KEEPING else []

    @staticmethod
    def _look_up(index: SuffixIndex, length: int) -> list[int]:
        place, found = index.shorten(index.end(), LONGEST), list[int]()
        while len(found) < length:
            token, match = index.continuation(place, SHORTEST)
            if not match:
                break
            found.append(token)
            place = index.shorten(index.advance(place, token), LONGEST)
        return found

    def _told(self, seconds: float) -> float:
        return seconds * math.exp(self._random.gauss(0, self.jitter))


def _between(points: Mapping[Any, float], at: float) -> float:
    """The value at `at` on straight lines through `points`; beyond the last, along the last line."""
    known = sorted(points)
    above = min(max(bisect_left(known, at), 1), len(known) - 1)
    low, high = known[above - 1], known[above]
    return points[low] + (points[high] - points[low]) * (at - low) / (high - low)
