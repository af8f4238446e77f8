"""Rounds that the runtime drafts and verifies by itself, several in a pass: whether they pay, and how many to ask for.

Where such a turn costs little more than a plain step, a few tokens kept pay for it. The number of tokens kept differs
from text to text far more than the cost of a turn. So a text begins with plain steps; where its end occurred before, a
few turns are tried, and as long as they pay, more of them follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.policies.goodput.acceptance import LONGEST_MATCH, MatchAcceptance
from specdec.policies.goodput.learnt import Learnt
from specdec.policies.goodput.prospect import Prospect, Situation
from specdec.policies.goodput.turn_results import WIDTHS, TurnResults
from specdec.policies.goodput.ways import Way

from specdec.engine.policy import DraftOption, RoundState

_MARGIN = 1.1  # tokens for each dense step, over the going rate, from which turns pay
_FIRST, _MOST = 4, 16  # turns of a pass where they have paid lately: at first, and at most
_FEW = 2  # turns of a pass where only a match promises a gain, of at least `_LONG` tokens
_LONG = 4.0
_LAUNCH = 0.2  # dense steps of the host's time for such a pass


@dataclass(slots=True)
class TurnPlanner:
    """Decides for one generation whether turns of the runtime's own pay, of what width, and how many of them."""

    _last: int = 0  # turns of the last pass, where they paid

    def choose(self, now: Situation, best: Prospect) -> Prospect:
        """Turns where they are better than `best`; else `best`."""
        turns = self._prospect(now)
        if turns is None or turns.tokens <= _MARGIN * now.rate * turns.cost or turns.net <= best.net:
            self._last = 0
            return best
        self._last = turns.turns if turns.turns > _FEW else 0
        return turns

    def _prospect(self, now: Situation) -> Prospect | None:
        """The best turns, whether they pay or not; None where the runtime drafts none."""
        option = turn_option(now.state)
        if option is None or now.state.max_draft_tokens < 1:
            return None
        results, best = results_of(now.learnt, option.drafter), Prospect(tokens=0.0)
        match = now.state.matches.get(option.drafter, 0)
        chances = match_of(now.learnt, option.drafter).chances
        for place, width in enumerate(WIDTHS):
            if width > option.turn_rows:
                break
            tokens, cost = results.tokens(place), results.cost(place, now.verify)
            turns = min(_MOST, max(_FIRST, 2 * self._last))
            if tokens <= _MARGIN * now.rate * cost:
                first = _by_match(chances, match, width)
                turns = 1 if first < _LONG else _FEW
                tokens = (first - _LAUNCH + (turns - 1) * tokens) / turns
            if tokens * best.cost > best.tokens * cost:
                best = Prospect(
                    rate=now.rate, tokens=tokens, cost=cost, option=option, way=Way(option.drafter, None),
                    length=width - 1, turns=turns, match=match, verify=now.verify,
                )  # fmt: skip
        return best


def turn_option(state: RoundState) -> DraftOption | None:
    """The option that the runtime drafts by itself, for a sequence that is alone."""
    if state.rows_beside:
        return None
    return next((option for option in state.options if option.turn_rows >= WIDTHS[0]), None)


def results_of(learnt: Learnt, drafter: str) -> TurnResults:
    """The results of a drafter's turns, begun on first use."""
    found = learnt.turns.get(drafter)
    if found is None:
        found = learnt.turns[drafter] = TurnResults()
    return found


def match_of(learnt: Learnt, drafter: str) -> MatchAcceptance:
    """Acceptance of a drafter's turns by the length of the match that the first one followed."""
    return learnt.match(f"turns of {drafter}")


def _by_match(chances: list[float], match: int, width: int) -> float:
    """Tokens of the next turn, which follows a match of that length."""
    if not match:
        return 1.0
    chance, tokens = 1.0, 1.0
    for step in range(width - 1):
        chance *= chances[min(match + step, LONGEST_MATCH)]
        tokens += chance
    return tokens
