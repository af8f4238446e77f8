"""Costs of a sequence's rows in a pass that others share, and when not to think about drafting there: `Shared`.

Where rows of others share a pass, a further row costs the difference of two passes that both are many times as dear:
small errors of theirs are large errors of it, and the lowest of several wrong prices is the one that is bought. So
neighbouring differences are averaged, unless one stands out, as where a kernel begins another tile.

Where drafting does not pay in shared passes, it rarely pays in the next round: a check every few rounds is enough, and
checks of many sequences, pass after pass, are time that all of them wait. A sequence alone checks at every third round
then, and learns from every fourth round without a check: both take a fiftieth of a step of a small model. Where the
runtime drafts by itself, steps are shorter still, and a check is only due after a longer match, or many rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from specdec.policies.goodput.acceptance import LONGEST_MATCH
from specdec.policies.goodput.learnt import Learnt

from specdec.engine.policy import RoundState

_FRESH = 16  # passes for which prices hold
_ERROR = 0.04  # of the cost of a pass
_STANDS_OUT = 3.0  # errors by which a difference has to differ from its neighbours to be believed
_REST = 8  # rounds from one look to the next
_ALONE_REST = 3  # the same for a sequence alone, at rounds whose number this divides
_ALONE_LESSON = 4
_TURN_REST = 12  # rounds from one look to the next where the runtime drafts by itself
_HOPE = 0.8  # share of the price of a row that a match's chance must have for a sequence alone to look


@dataclass(slots=True)
class Shared:
    """What one generation knows of passes that it shares.

    Attributes:
        prices: cost of rows and the round of all generations that it was computed in, by rows of others; those
            that `Learnt` serves share it.
        rests: the round has not been looked at.
    """

    prices: dict[int, tuple[int, list[float]]] = field(default_factory=dict)
    rests: bool = False
    _looked: int = -1  # number of the round of the last look
    _until: int = 0  # and of the next one
    _beside: int = 0  # rows of others at the last one
    _turns: bool = False  # the last look knew from which match turns of the runtime's own pay
    _due: int = 0  # position from which to try them
    _pays_from: dict[str, int] = field(default_factory=dict)  # length of a match, by drafter

    def verify(self, learnt: Learnt, state: RoundState) -> Sequence[float]:
        """Cost of the pass by this sequence's rows; see `CostModel.beside`."""
        beside = state.rows_beside
        if not beside:
            return learnt.costs.beside(0)
        known = self.prices.get(beside)
        if known is None or learnt.rounds >= known[0] + _FRESH * (beside + 1):
            known = self.prices[beside] = learnt.rounds, _smoothed(learnt.costs.beside(beside), beside)
        return known[1]

    def is_known_not_to_pay(self, learnt: Learnt, state: RoundState) -> bool:
        """Whether a look a few rounds ago speaks for this one, too."""
        beside = state.rows_beside
        self.rests = (
            (beside > 0 or self._turns or learnt.rounds % _ALONE_REST > 0)
            and self._looked < state.round_index < self._until
            and (not self._turns or state.position < self._due)
            and abs(beside - self._beside) <= self._beside // 4
            and all(length < self._pays_from.get(name, 1) for name, length in state.matches.items())
        )
        return self.rests

    def is_lesson(self, number: int) -> bool:
        """Whether the `number`-th round of all has anything to teach: of those without a look, about one in a pass."""
        return not self.rests or not number % (self._beside + 1 if self._beside else _ALONE_LESSON)

    def look_again(self) -> None:
        """What was seen at the last look does not speak for the next round."""
        self._until = 0

    def looked(
        self,
        learnt: Learnt,
        state: RoundState,
        verify: Sequence[float],
        rate: float,
        turns: Mapping[str, int],
        due: int,
    ) -> None:
        """A look has shown that drafting does not pay now. `turns`: length of a match from which turns of the runtime's
        own pay, by the drafter that they replace; `due`: position from which to try them."""
        beside = state.rows_beside
        self._due = due
        self._looked, self._beside, self._turns = state.round_index, beside, bool(turns)
        self._until = state.round_index + (_REST if beside else _TURN_REST if turns else _ALONE_REST)
        price = rate * (verify[2] - verify[1]) * (1.0 if beside else _HOPE)
        for name in state.matches:
            if name in turns:
                self._pays_from[name] = turns[name]
                continue
            chances = learnt.match(name).chances
            self._pays_from[name] = next((n for n in range(1, LONGEST_MATCH + 1) if chances[n] > price), 1 << 30)


def _smoothed(verify: list[float], beside: int) -> list[float]:
    """`verify` with the differences of neighbours averaged: more of them, the more rows others have in the pass."""
    steps = [after - before for before, after in pairwise(verify[1:])]
    error = _STANDS_OUT * _ERROR * verify[1] * (beside + 1)
    width = max(1, (beside + 1) // 4)
    smooth: list[float] = []
    for index, step in enumerate(steps):
        near = steps[max(0, index - width) : index + width + 1]
        middle = sorted(near)[len(near) // 2]
        usual = [one for one in near if abs(one - middle) <= error]
        smooth.append(step if abs(step - middle) > error else sum(usual) / len(usual))
    found = verify[:2]
    for step in smooth:
        found.append(found[-1] + step)
    return found
