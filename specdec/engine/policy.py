"""The policy protocol: what a policy learns, and what it may decide. A policy author's one import.

What the engine tells a policy is not the policy's to change.

A round runs `plan`, then `next_step` after every drafted token but the last one planned, then `observe` once the
verifier has spoken. What a policy may learn across generations comes in through `begin`, what it has to tell goes out
through `summary`; both are optional. A policy refuses parameters with `InvalidArgumentError`; `check_effort`,
`check_count` and `check_number` do so for the usual ones. This module imports no model code and no array library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from specdec.checks import check_count, check_effort, check_number
from specdec.errors import InvalidArgumentError

__all__ = [
    "CostTable",
    "Distribution",
    "DraftKey",
    "DraftOption",
    "DraftPlan",
    "Estimator",
    "InvalidArgumentError",
    "Knowledge",
    "Learner",
    "Patient",
    "Policy",
    "Reporter",
    "RoundOutcome",
    "RoundState",
    "StepSignals",
    "check_count",
    "check_effort",
    "check_number",
]

DraftKey: TypeAlias = tuple[str, str | None, float]
"""A kind of draft step: drafter, view, and effort."""


@dataclass(frozen=True, slots=True)
class DraftOption:
    """Something that a round may draft with.

    Attributes:
        drafter: its name.
        view: draft view that it would read; None for a drafter that reads no weights.
        takes_effort: the plan's effort means something to it.
        most_tokens: most tokens that it ever drafts in a round; None for as many as it is asked for.
        turn_rows: the runtime drafts and verifies by itself, in turns of at most this number of rows; 0 where it does
            not.
        waits: the view has yet to be made, which takes up to seconds when a round first drafts with it; its costs in
            the table are the least that they can be.
        windowed_from: tokens of context from which a plan may choose whether draft steps attend to a window of it or
            to all of it; None where there is no choice.
    """

    drafter: str
    view: str | None
    takes_effort: bool
    most_tokens: int | None = None
    waits: bool = False
    turn_rows: int = 0
    windowed_from: int | None = None


class Distribution(Protocol):
    """Shape of a next-token distribution at temperature 1. Computed when first asked for."""

    @property
    def entropy(self) -> float:
        """In nats."""
        ...

    @property
    def top_probability(self) -> float:
        """Largest probability."""
        ...

    @property
    def margin(self) -> float:
        """Largest minus second largest logit."""
        ...


@dataclass(slots=True, kw_only=True)  # made in every round: frozen ones take four times as long
class RoundState:
    """What is known before a round.

    Attributes:
        round_index: rounds finished so far in this generation.
        position: absolute position of the first token that this round may emit.
        max_draft_tokens: most tokens that may be drafted now (budget and context room allow no more); may be 0.
        draft_len: draft length that the caller asked for.
        draft_effort: effort that the caller asked drafts to use (the mean, when it is a schedule).
        verify_effort: effort of verification (the mean, when it is a schedule).
        options: what may draft, at least one; the first is what the caller asked for, or the default.
        temperature: of the sampling; 0 is greedy.
        is_effort_asked: the caller named the draft effort, rather than leaving it to the policy.
        matches: for drafters that can tell beforehand, by name: tokens of context that speak for their proposal
            (for a lookup, how long the end of the text is that it found again), 0 when they have nothing to propose.
        distribution: of the logits that the pending token was drawn from; None when they are not known, as in the
            first round.
        rows_beside: rows that other sequences are expected to have in the same verify pass; 0 for one alone.
        named: drafters that the caller named, rather than leaving the choice open.
        missed: for an option with `turn_rows`, tokens that each of its turns would have kept in the text since the last
            plan, one turn after the other, as far as the text and usual successors of tokens tell.
    """

    round_index: int
    position: int
    max_draft_tokens: int
    draft_len: int
    draft_effort: float
    verify_effort: float
    options: tuple[DraftOption, ...]
    temperature: float = 0.0
    is_effort_asked: bool = True
    matches: Mapping[str, int] = field(default_factory=dict)
    distribution: Distribution | None = None
    rows_beside: int = 0
    named: frozenset[str] = frozenset()
    missed: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """A policy's decision for one round.

    Attributes:
        num_draft_tokens: most tokens to draft, 0 for a plain step; the engine caps it at `max_draft_tokens`.
        effort: effort in (0, 1] of the first draft step.
        drafter: who drafts, by name; None: the first option's drafter.
        view: draft view to read; None: the first one that is offered for the drafter.
        turns: for an option with `turn_rows`, most rounds that the runtime runs by itself; it may run fewer.
        at_once: first tokens of the draft that the runtime may draft at the effort of the first before it asks
            `next_step` about them, one by one; an answer to stop drops those that follow. It may draft fewer.
        least_margin: where tokens are drafted at once, the largest logit that is drafted after has at least this margin
            over the second; 0 drafts on in any case.
        windowed: for an option with `windowed_from`, whether draft steps attend to a window of a long context rather
            than to all of it; None leaves it to the drafter.
    """

    num_draft_tokens: int
    effort: float
    drafter: str | None = None
    view: str | None = None
    turns: int = 1
    at_once: int = 1
    least_margin: float = 0.0
    windowed: bool | None = None


@dataclass(slots=True, kw_only=True)  # made in every round: frozen ones take four times as long
class StepSignals:
    """What one draft step showed.

    Attributes:
        index: number of the drafted token within the round, from 0.
        position: its absolute position.
        effort: effort that the step used.
        context_length: tokens in the cache before the step.
        drafter: who drafted it.
        view: draft view that was read, if any.
        seconds: what the step cost: those of the whole pass, also when other sequences drafted in it.
        distribution: what the step's logits look like; a policy that never reads it costs nothing.
    """

    index: int
    position: int
    effort: float
    context_length: int
    drafter: str
    view: str | None
    seconds: float
    distribution: Distribution


@dataclass(slots=True, kw_only=True)  # made in every round: frozen ones take four times as long
class RoundOutcome:
    """What came of a round.

    Attributes:
        drafted: tokens proposed.
        accepted: how many of them the verifier kept.
        signals: one per drafted token, or none when the drafter has no distribution to show.
        drafter: who was asked to draft; None after a plain step.
        view: draft view that was read, if any.
        context_length: tokens in the cache before the round.
        draft_s: seconds spent drafting.
        verify_s: seconds spent in the verify pass.
        round_s: seconds of the whole round up to now: drafting, the verify pass, planning, and drawing tokens.
        rows_beside: rows of the verify pass that are not of these tokens: those of other sequences, and those of tokens
            that a grammar left no choice about. Times are those of whole passes.
        draft_share: this sequence's share of `draft_s`, above 0: 1 when it drafted alone, 1/k when k sequences drafted
            in the same passes.
        turns: drafted tokens that were kept in each of the rounds that the runtime ran by itself; the numbers above are
            their sums. Empty for a round run by the engine.
        ahead: plain steps that the pass of this round went ahead for, which the policy is not asked about; the times
            are of one of its steps.
    """

    drafted: int
    accepted: int
    signals: tuple[StepSignals, ...]
    drafter: str | None
    view: str | None
    context_length: int
    draft_s: float
    verify_s: float
    round_s: float
    rows_beside: int = 0
    draft_share: float = 1.0
    turns: tuple[int, ...] = ()
    ahead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Seconds of passes on this machine: measured before the first round, or learnt from earlier answers.

    A spread is the standard deviation of the logarithm of a cost against the others (0.1: about 10 %), as far as it is
    known: a table that was measured on a busy machine, or long ago, says so by it.

    Attributes:
        verify_s: seconds of an exact pass, by its number of rows.
        draft_s: seconds of one draft step, by drafter, view, and effort.
        verify_spread: by number of rows.
        draft_spread: by drafter, view, and effort.
        turn_s: seconds of one of several turns that the runtime drafts and verifies by itself in a pass, by the rows of
            a turn; under 1, of a plain step of a pass that goes ahead. Empty where the runtime has no turns.
    """

    verify_s: Mapping[int, float] = field(default_factory=dict)
    draft_s: Mapping[DraftKey, float] = field(default_factory=dict)
    verify_spread: Mapping[int, float] = field(default_factory=dict)
    draft_spread: Mapping[DraftKey, float] = field(default_factory=dict)
    turn_s: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What a policy starts from.

    Attributes:
        costs: measured seconds, or an empty table where nothing was measured.
        memory: what policies of this class have learnt from earlier answers of the loaded model; the policy's to fill
            and change. It may change speed only; the engine sees to that.
    """

    costs: CostTable = field(default_factory=CostTable)
    memory: dict[Any, Any] = field(default_factory=dict)


@runtime_checkable
class Policy(Protocol):
    """Chooses the draft length and each token's effort. Stateful; one object serves one generation."""

    def plan(self, state: RoundState) -> DraftPlan:
        """Decide the round before it starts."""
        ...

    def next_step(self, signals: StepSignals) -> float | None:
        """Effort in (0, 1] for the next draft step, or None to stop drafting now."""
        ...

    def observe(self, outcome: RoundOutcome) -> None:
        """Learn from the finished round."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A policy that wants measured costs and a memory."""

    def begin(self, knowledge: Knowledge) -> None:
        """Called once, before the first round."""
        ...


@runtime_checkable
class Patient(Protocol):
    """A policy that has nothing to decide in the first rounds of an answer, where the runtime drafts by itself."""

    @property
    def quiet_rounds(self) -> int:
        """Rounds that are plain steps, about which it is neither asked nor told, for a sequence alone whose caller
        named no drafter: many answers are that short."""
        ...


@runtime_checkable
class Reporter(Protocol):
    """A policy that has something to say in the statistics."""

    def summary(self) -> Mapping[str, Any]:
        """Plain JSON values; asked for after the last round."""
        ...


@runtime_checkable
class Estimator(Protocol):
    """A learner that keeps estimating what passes cost."""

    def costs(self) -> CostTable | None:
        """What passes cost by now, for the next process that loads the model; asked for after the last round. None
        where nothing was learnt."""
        ...
