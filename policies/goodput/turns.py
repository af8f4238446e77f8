"""Rounds that the runtime drafts and verifies by itself, several in a pass: what they bring, and how many to ask for.

Where such a turn costs little more than a plain step, a few tokens kept pay for it. How many are kept differs from text to
text far more than the cost of a turn, so each text begins with a few turns, and plain steps follow where these do not pay.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.policies.goodput.acceptance import LONGEST_MATCH
from specdec.policies.goodput.learnt import Learnt
from specdec.policies.goodput.prospect import Prospect, Situation
from specdec.policies.goodput.turn_results import WIDTHS, TurnResults

from specdec.engine.policy import DraftOption, RoundState

_MARGIN = 1.02  # tokens for each dense step, over the going rate, from which turns pay
FIRST, MOST, _TRIAL = 4, 16, 2  # turns of a pass: the first, the longest, and one to find out
_REST, _LONGEST_REST = 48, 384  # tokens from one look at what does not pay to the next


@dataclass(slots=True)
class TurnPlanner:
    """Decides for one generation whether turns of the runtime's own pay, of what width, and how many of them."""

    _last: int = 0  # turns of the last pass, 0 after another round
    _rest: int = _REST
    _until: int = 0  # position of the next look

    def prospect(self, now: Situation) -> Prospect | None:
        """The best turns, whether they pay or not; None where the runtime drafts none."""
        option = turn_option(now.state)
        if option is None or now.state.max_draft_tokens < 1:
            return None
        results = results_of(now.learnt, option.drafter)
        best: Prospect | None = None
        for place, width in enumerate(WIDTHS):
            if width > option.turn_rows:
                break
            tokens, cost = max(results.tokens(place), _by_match(now, width)), results.cost(place)
            found = Prospect(
                rate=now.rate, tokens=tokens, cost=cost, option=option, length=width - 1, turns=1, verify=now.verify
            )  # fmt: skip
            if best is None or found.tokens * best.cost > best.tokens * found.cost:
                best = found
        assert best is not None  # a turn has at least the fewest rows
        pays = results.tokens(WIDTHS.index(best.length + 1)) > _MARGIN * now.rate * best.cost
        best.turns = min(MOST, max(FIRST, 2 * self._last)) if pays else _TRIAL
        return best

    def choose(self, now: Situation, turns: Prospect | None, best: Prospect) -> Prospect:
        """`turns` where they are better than `best`, or a look at them is due; else `best`."""
        if turns is None:
            return best
        position = now.state.position
        if turns.tokens > _MARGIN * now.rate * turns.cost and turns.net > best.net:
            self._last, self._rest, self._until = turns.turns, _REST, position + _REST
            return turns
        if self._last:
            self._until = position + self._rest
        self._last = 0
        if position >= self._until and turns.tokens * 1.25 > now.rate * turns.cost:
            self._rest = min(_LONGEST_REST, 2 * self._rest)
            self._until = position + self._rest
            turns.turns, turns.is_trial = _TRIAL, True
            return turns
        return best


def turn_option(state: RoundState) -> DraftOption | None:
    """What the runtime drafts by itself, for a sequence that is alone."""
    if state.rows_beside:
        return None
    return next((option for option in state.options if option.turn_rows >= WIDTHS[0]), None)


def results_of(learnt: Learnt, drafter: str) -> TurnResults:
    """The results of a drafter's turns, begun on first use."""
    found = learnt.turns.get(drafter)
    if found is None:
        found = learnt.turns[drafter] = TurnResults()
    return found


def _by_match(now: Situation, width: int) -> float:
    """Tokens of the next turn by the length of the match that a lookup has found: a turn follows it as well."""
    tokens = 1.0
    for drafter, match in now.state.matches.items():
        if match > 1:
            chances, chance, found = now.learnt.match(drafter).chances, 1.0, 1.0
            for step in range(width - 1):
                chance *= chances[min(match + step, LONGEST_MATCH)]
                found += chance
            tokens = max(tokens, found)
    return tokens
