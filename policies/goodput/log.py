"""What a generation's rounds were expected to bring, what they brought, and when drafting was parked: `RoundLog`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specdec.policies.goodput.prospect import Prospect

from specdec.engine.policy import RoundState

_MOST_SPELLS = 32  # of parking that a summary tells one by one


@dataclass(slots=True)
class RoundLog:
    """The log of one generation; `summary` is what the policy says in the statistics."""

    expected_plain: float = 0.0
    expected_cost: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    plain_s: float = 0.0
    all_plain_s: float = 0.0
    plain_steps: int = 0
    trials: int = 0
    plain_rounds: int = 0
    spells: list[dict[str, Any]] = field(default_factory=list)
    _is_parked: bool = False

    def planned(
        self, state: RoundState, *, best: Prospect, chosen: Prospect, plain_cost: float, best_draft: Prospect | None
    ) -> None:
        """Note a decision: the `best` prospect, the `chosen` one, what a plain step costs, and what the `best_draft`
        (None when there is nothing to draft with) was expected to bring."""
        self.trials += chosen.is_trial
        if not state.max_draft_tokens:
            return
        self.plain_rounds += chosen.option is None
        if best.option is None and not self._is_parked:
            self.spells.append(
                {"from_round": state.round_index, "rounds": 0, "reason": self._reason(best_draft, plain_cost)}
            )
        self._is_parked = best.option is None
        if self._is_parked:
            self.spells[-1]["rounds"] += 1

    def rested(self, state: RoundState) -> None:
        """Note a plain round like those before it."""
        if state.max_draft_tokens:
            self.plain_rounds += 1
            self.spells[-1]["rounds"] += 1

    def passed(self, seconds: float, cost: float) -> None:
        """Note what such a round has brought, a token, and in what time."""
        self.expected_plain += cost
        self.expected_cost += cost
        self.tokens += 1.0
        self.seconds += seconds
        self.all_plain_s += seconds  # it was a plain step
        self.plain_steps += 1

    def finished(
        self,
        tokens: float,
        seconds: float,
        *,
        expected: float,
        cost: float,
        plain_cost: float,
        plain_s: float,
        is_plain: bool,
    ) -> None:
        """Note what a round brought, and in what time; `plain_s` is what a plain step would have taken then."""
        self.expected_plain += expected * plain_cost
        self.expected_cost += cost
        self.tokens += tokens
        self.seconds += seconds
        self.all_plain_s += tokens * plain_s
        self.plain_s = plain_s
        self.plain_steps += is_plain

    @staticmethod
    def _reason(draft: Prospect | None, plain_cost: float) -> str:
        if draft is None:
            return "no draft length promised a gain"
        gain = draft.tokens / draft.cost * plain_cost
        assert draft.option is not None
        return f"drafts by {draft.option.drafter}: predicted {gain:.2f}x of plain decoding"

    def summary(self) -> dict[str, Any]:
        """Plain JSON values; gains are speeds over that of plain decoding. The estimated one divides by the time that
        the answer's tokens would have taken plainly: the cost of a plain step, round by round, which is as good as the
        plain steps that were timed (`plain_steps_timed`)."""
        predicted = self.expected_plain / self.expected_cost if self.expected_cost else 0.0
        return {
            "predicted_gain": round(predicted, 3),
            "estimated_gain": round(self.all_plain_s / self.seconds if self.seconds else 0.0, 3),
            "plain_step_s": round(self.plain_s, 6),
            "plain_steps_timed": self.plain_steps,
            "trial_rounds": self.trials,
            "parked_rounds": sum(spell["rounds"] for spell in self.spells),
            "parked": self.spells[:_MOST_SPELLS],
        }
