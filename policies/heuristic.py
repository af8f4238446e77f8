"""The policy that lengthens drafts after success and shortens them after failure."""

from __future__ import annotations

from dataclasses import dataclass, field

from specdec.engine.policy import (
    DraftPlan,
    RoundOutcome,
    RoundState,
    StepSignals,
    check_count,
    check_effort,
)


@dataclass(slots=True)
class HeuristicPolicy:
    """Two tokens more after a draft that was kept whole, one token less after any other.

    The rule of transformers' assisted generation (`num_assistant_tokens_schedule="heuristic"`). Never below 1.

    Attributes:
        length: tokens of the first draft; None takes the caller's draft length.
        longest: most tokens of a draft.
        effort: effort in (0, 1]; None takes the caller's draft effort.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    length: int | None = None
    longest: int = 20
    effort: float | None = None
    _next: int = field(default=0, init=False, repr=False)
    _current: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.longest = check_count("longest", self.longest)
        if self.length is not None:
            self.length = check_count("length", self.length)
        if self.effort is not None:
            self.effort = check_effort(self.effort)

    def plan(self, state: RoundState) -> DraftPlan:
        """The length that the rounds so far have led to."""
        if not self._next:
            self._next = min(self.longest, state.draft_len if self.length is None else self.length)
        self._current = state.draft_effort if self.effort is None else self.effort
        length = min(self._next, state.max_draft_tokens)
        return DraftPlan(num_draft_tokens=length, effort=self._current, at_once=max(1, length))

    def next_step(self, signals: StepSignals) -> float | None:  # noqa: ARG002
        """The same effort again."""
        return self._current

    def observe(self, outcome: RoundOutcome) -> None:
        """Two more, or one less."""
        if outcome.drafted:
            change = 2 if outcome.accepted == outcome.drafted else -1
            self._next = min(self.longest, max(1, self._next + change))
