"""The policy that stops drafting where entropy says that the verifier will disagree."""

from __future__ import annotations

import math
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

_RATE_MEMORY = 0.5  # weight of the past in the acceptance rate that the threshold follows
_LOWEST, _HIGHEST = 0.0, 0.95


@dataclass(slots=True)
class EntropyPolicy:
    """Stop when 1 - sqrt(gamma * H), a lower bound of acceptance at entropy H, falls below a threshold.

    The threshold moves by `step` after every round: up when fewer of the drafted tokens than `target` were kept lately,
    down when more were. Source: AdaEDL (Agrawal et al. 2410.18351, sections 3 and 4).

    Attributes:
        gamma: how fast the bound falls with entropy, per nat.
        threshold: what the bound has to reach at first, 0 to 1.
        target: share of drafted tokens that should be kept, 0 to 1.
        step: change of the threshold after a round; 0 keeps it.
        longest: most tokens of a draft.
        effort: effort in (0, 1]; None takes the caller's draft effort.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    gamma: float = 0.2
    threshold: float = 0.3
    target: float = 0.9
    step: float = 0.01
    longest: int = 20
    effort: float | None = None
    _current: float = field(default=1.0, init=False, repr=False)
    _rate: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.longest = check_count("longest", self.longest)
        self.gamma = check_number("gamma", self.gamma, 0)
        for name in ("threshold", "target", "step"):
            setattr(self, name, check_number(name, getattr(self, name), 0, 1))
        if self.effort is not None:
            self.effort = check_effort(self.effort)

    def plan(self, state: RoundState) -> DraftPlan:
        """Plan the most tokens that are allowed."""
        self._current = state.draft_effort if self.effort is None else self.effort
        return DraftPlan(num_draft_tokens=min(self.longest, state.max_draft_tokens), effort=self._current)

    def next_step(self, signals: StepSignals) -> float | None:
        """On, while the bound holds."""
        bound = 1.0 - math.sqrt(self.gamma * signals.distribution.entropy)
        return self._current if bound >= self.threshold else None

    def observe(self, outcome: RoundOutcome) -> None:
        """Move the threshold towards the target."""
        if not outcome.drafted:
            return
        rate = outcome.accepted / outcome.drafted
        self._rate = rate if self._rate is None else _RATE_MEMORY * self._rate + (1 - _RATE_MEMORY) * rate
        moved = self.threshold + (self.step if self._rate < self.target else -self.step)
        self.threshold = min(_HIGHEST, max(_LOWEST, moved))
