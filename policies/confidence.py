"""The policy that drafts on while the drafter is sure of its token."""

from __future__ import annotations

from dataclasses import dataclass, field

from specdec.engine.policy import (
    DraftPlan,
    RoundOutcome,
    RoundState,
    StepSignals,
    check_count,
    check_effort,
    check_number,
)


@dataclass(slots=True)
class ConfidencePolicy:
    """Stop after the first token whose distribution has no probability of at least `threshold`.

    The rule of transformers (`assistant_confidence_threshold`, 0.4 there) and of llama.cpp (`--draft-p-min`, 0.75).

    Attributes:
        threshold: least top probability, 0 to 1, to go on.
        longest: most tokens of a draft.
        effort: effort in (0, 1]; None takes the caller's draft effort.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    threshold: float = 0.4
    longest: int = 20
    effort: float | None = None
    _current: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.longest = check_count("longest", self.longest)
        self.threshold = check_number("threshold", self.threshold, 0, 1)
        if self.effort is not None:
            self.effort = check_effort(self.effort)

    def plan(self, state: RoundState) -> DraftPlan:
        """Plan the most tokens that are allowed."""
        self._current = state.draft_effort if self.effort is None else self.effort
        return DraftPlan(num_draft_tokens=min(self.longest, state.max_draft_tokens), effort=self._current)

    def next_step(self, signals: StepSignals) -> float | None:
        """On, while the last token was likely enough."""
        return self._current if signals.distribution.top_probability >= self.threshold else None

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""
