"""Rounds as `goodput` sees them: what one is expected to bring (`Prospect`), and a log of what came (`RoundLog`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.policies.goodput.acceptance import UNKNOWN, MatchAcceptance

from specdec.engine.policy import DraftOption, RoundOutcome, RoundState

_MOST_SPELLS = 32  # of parking that a summary tells one by one


def best_length(
    verify: Sequence[float], step: float, acceptance: float, rate: float, limit: int
) -> tuple[int, float, float]:
    """Draft length of the most profitable round, when every token is kept with the same chance.

    Args:
        verify: cost of a pass by its number of rows.
        step: cost of a draft step.
        acceptance: chance that a token is kept when those before it are.
        rate: tokens that a unit of cost is worth.
        limit: most tokens to draft.

    Returns:
        The length, and the tokens and the cost of a round with at least one drafted token (where `limit` allows it):
        with length 0 those of the least bad draft.
    """
    chance, tokens, cost = 1.0, 1.0, verify[1]
    plain = tokens - rate * cost
    length, best, best_tokens, best_cost = 0, -1e9, tokens, cost
    for k in range(1, min(limit, len(verify) - 2) + 1):
        chance *= acceptance
        tokens += chance
        cost += step + verify[k + 1] - verify[k]
        net = tokens - rate * cost
        if net > best:
            length, best, best_tokens, best_cost = k, net, tokens, cost
        elif net < best - 1.0:
            break
    return (length if best > plain else 0), best_tokens, best_cost


@dataclass(slots=True)
class Prospect:
    """A round that may be, or is being, run.

    Attributes:
        rate: tokens that a dense step is worth.
        tokens: expected, the verifier's own included.
        cost: expected, in dense steps.
        option: what drafts; None for a plain step.
        effort: of the first step, or of all of a trial.
        length: most tokens to draft.
        menu: efforts to choose from, for drafters that run a model.
        match: length of the match that a lookup found.
        acceptance: of the lookup.
        kept_whole: tokens drafted, once all of them were kept.
        is_trial: run to find out.
        counts: its outcome tells how good the way of drafting is.
        greedy: nothing is drawn at random.
        chance: that all tokens drafted so far are kept.
        expected: tokens that the draft so far is expected to bring.
        classes: of the signals so far, behind one for what came before the draft.
    """

    rate: float = 1.0
    tokens: float = 1.0
    cost: float = 1.0
    option: DraftOption | None = None
    effort: float = 1.0
    length: int = 0
    menu: Any = None
    match: int = 0
    acceptance: MatchAcceptance | None = None
    kept_whole: int = 0
    is_trial: bool = False
    counts: bool = False
    greedy: bool = True
    chance: float = 1.0
    expected: float = 1.0
    classes: list[int] = field(default_factory=lambda: [UNKNOWN])

    @property
    def net(self) -> float:
        """Tokens to be gained over what the cost would bring at the going rate."""
        return self.tokens - self.rate * self.cost


@dataclass(slots=True)
class Lesson:
    """What a round has to teach, without the logits of its steps.

    Attributes:
        prospect: what the round was planned as.
        number: of the round, over all generations, from 1.
        way: drafter and view that were asked; None after a plain step.
        drafted: tokens proposed.
        accepted: how many of them were kept.
        steps: effort and seconds of every draft step.
        draft_s: seconds of drafting.
        round_s: seconds of the whole round.
    """

    prospect: Prospect
    number: int
    way: tuple[str, str | None] | None
    drafted: int
    accepted: int
    steps: list[tuple[float, float]]
    draft_s: float
    round_s: float

    @classmethod
    def of(cls, outcome: RoundOutcome, prospect: Prospect, number: int) -> Lesson:
        """From what the engine tells."""
        way = None if outcome.drafter is None else (outcome.drafter, outcome.view)
        steps = [(one.effort, one.seconds) for one in outcome.signals]
        return cls(prospect, number, way, outcome.drafted, outcome.accepted, steps, outcome.draft_s, outcome.round_s)


@dataclass(slots=True)
class RoundLog:
    """What a generation's rounds were expected to bring, what they brought, and when drafting was parked."""

    expected_tokens: float = 0.0
    expected_cost: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    dense_s: float = 0.0
    plain_cost: float = 1.0
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

    def finished(
        self, tokens: float, seconds: float, *, expected: float, cost: float, plain_cost: float, dense_s: float
    ) -> None:
        """Note what a round brought, and in what time."""
        self.expected_tokens += expected
        self.expected_cost += cost
        self.tokens += tokens
        self.seconds += seconds
        self.plain_cost, self.dense_s = plain_cost, dense_s

    @staticmethod
    def _reason(draft: Prospect | None, plain_cost: float) -> str:
        if draft is None:
            return "no draft length was expected to pay"
        gain = draft.tokens / draft.cost * plain_cost
        assert draft.option is not None
        return f"drafting with {draft.option.drafter} was expected to bring {gain:.2f}x of plain decoding"

    def summary(self) -> dict[str, Any]:
        """Plain JSON values; gains are speeds over that of plain decoding."""
        predicted = self.expected_tokens * self.plain_cost / self.expected_cost if self.expected_cost else 0.0
        real = self.tokens * self.dense_s / self.seconds if self.seconds else 0.0
        return {
            "predicted_gain": round(predicted, 3),
            "real_gain": round(real, 3),
            "plain_step_s": round(self.dense_s, 6),
            "trial_rounds": self.trials,
            "parked_rounds": sum(spell["rounds"] for spell in self.spells),
            "parked": self.spells[:_MOST_SPELLS],
        }
