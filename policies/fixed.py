"""The policy that always drafts the same number of tokens at the same effort."""

from __future__ import annotations

from dataclasses import dataclass, field

from specdec.engine.policy import (
    DraftPlan,
    InvalidArgumentError,
    RoundOutcome,
    RoundState,
    StepSignals,
    check_effort,
)


@dataclass(slots=True)
class FixedPolicy:
    """Draft `length` tokens a round at `effort`, whatever happens.

    Attributes:
        length: tokens to draft, at least 1; None takes the caller's draft length.
        effort: effort in (0, 1]; None takes the caller's draft effort.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    length: int | None = None
    effort: float | None = None
    _current: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.length is not None and (type(self.length) is not int or self.length < 1):
            raise InvalidArgumentError(f"length must be a whole number of at least 1, not {self.length!r}")
        if self.effort is not None:
            self.effort = check_effort(self.effort)

    def plan(self, state: RoundState) -> DraftPlan:
        """The fixed length, cut to what the budget allows."""
        self._current = state.draft_effort if self.effort is None else self.effort
        length = state.draft_len if self.length is None else self.length
        length = min(length, state.max_draft_tokens)
        return DraftPlan(num_draft_tokens=length, effort=self._current, at_once=max(1, length))

    def next_step(self, signals: StepSignals) -> float | None:  # noqa: ARG002
        """The same effort again."""
        return self._current

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""
