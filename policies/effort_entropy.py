"""The policy that spends effort where the text is hard: entropy sets the effort of the next draft step."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.engine.policy import (
    Distribution,
    DraftPlan,
    InvalidArgumentError,
    RoundOutcome,
    RoundState,
    StepSignals,
    check_count,
    check_effort,
    check_number,
)

_STEPS = 20  # efforts are multiples of 1 / 20: few enough for the runtime to remember each


@dataclass(slots=True)
class EffortEntropyPolicy:
    """The next step's effort rises with the entropy of the last logits, from `low` at 0 to `high` at `hard` nats.

    Past `stop` nats drafting ends. The first step of a round goes by the logits that the verifier drew its last token
    from.

    Attributes:
        low: effort in (0, 1] after a certain token.
        high: effort in (0, 1] after a hard one.
        hard: entropy in nats from which effort is `high`.
        stop: entropy in nats above which drafting stops, more than `hard` for that to be seen.
        longest: most tokens of a draft.

    Raises:
        InvalidArgumentError: a value is out of range, or `low` is above `high`.
    """

    low: float = 0.5
    high: float = 1.0
    hard: float = 1.5
    stop: float = 3.0
    longest: int = 8

    def __post_init__(self) -> None:
        self.longest = check_count("longest", self.longest)
        self.low, self.high = check_effort(self.low, "low"), check_effort(self.high, "high")
        if self.low > self.high:
            raise InvalidArgumentError(f"low must be at most high ({self.high:g}), not {self.low:g}")
        self.hard, self.stop = check_number("hard", self.hard, 1e-6), check_number("stop", self.stop, 0)

    def plan(self, state: RoundState) -> DraftPlan:
        """Plan the most tokens that are allowed, the first at the effort that the verifier's last logits call for."""
        length = min(self.longest, state.max_draft_tokens)
        effort = self.high if state.distribution is None or not length else self._effort(state.distribution)
        return DraftPlan(num_draft_tokens=length, effort=effort)

    def next_step(self, signals: StepSignals) -> float | None:
        """More effort the less certain the last token was; none past the point."""
        return None if signals.distribution.entropy > self.stop else self._effort(signals.distribution)

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""

    def _effort(self, distribution: Distribution) -> float:
        share = min(1.0, distribution.entropy / self.hard)
        effort = round((self.low + (self.high - self.low) * share) * _STEPS) / _STEPS
        return min(self.high, max(self.low, effort))
