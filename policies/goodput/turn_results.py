"""Results of rounds that the runtime drafts and verifies by itself: `TurnResults`. `turns` asks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTHS = (4, 8, 16)  # rows of a turn
PLAIN = 1  # key of a plain step among measured seconds
# Tokens kept in a turn of each width, close to small models' in the kinds of prompts where least is kept.
_USUAL_KEPT = (0.45, 0.65, 0.8)
# The same where the prompt is long: answers to such prompts often quote them.
LONG_PROMPT, _QUOTED_KEPT = 256, (0.65, 0.95, 1.2)
# Share of the tokens kept by the widest turn, up to the depth of a tree, that narrower ones keep.
_LOST = (0.65, 0.85, 1.0)
_USUAL_COST = (1.25, 1.4, 1.65)  # plain steps of a turn, until it is measured or seen
_USUAL_TURNS = 4.0  # turns that the usual numbers count for
_APART, _EACH = 0.4, 0.8  # standard deviations of the tokens kept, from text to text and from turn to turn
_MEMORY, _COST_MEMORY = 24.0, 6.0  # turns, and passes
_LEAST_AHEAD = 7  # plain steps that a pass has to go ahead for to say what one costs
_NEW_TEXT = 0.15  # share of what was seen that counts for the next text
_MISSED_WIDTH = 8  # rows of turns that plain steps took the place of
_MISSED = 0.5  # turns that one of them counts for


@dataclass(slots=True)
class TurnResults:
    """Results of recent turns.

    Attributes:
        kept: tokens kept, counted up to the depth of a tree of each of `WIDTHS`; discounted sums.
        seen: turns, discounted.
        costs: plain steps of a turn by its width, as far as they are measured or seen.
        plain_s: seconds of a plain step of a pass that goes ahead; 0 where that is not known.
        usual: tokens kept by a turn of each of `WIDTHS` in texts such as this one.
    """

    kept: list[float] = field(default_factory=lambda: [0.0] * len(WIDTHS))
    seen: float = 0.0
    costs: dict[int, float] = field(default_factory=dict)
    plain_s: float = 0.0
    usual: tuple[float, ...] = _USUAL_KEPT

    @classmethod
    def measured(cls, turn_s: Mapping[int, float]) -> TurnResults:
        """Results of which only costs are known: seconds of a turn by width, and of a plain step under `PLAIN`."""
        plain_s = turn_s.get(PLAIN, 0.0)
        costs = {width: turn_s[width] / plain_s for width in WIDTHS if plain_s and width in turn_s}
        return cls(costs=costs, plain_s=plain_s)

    def tokens(self, place: int) -> float:
        """Expected tokens of a turn of width number `place`, the verifier's own included."""
        usual, lost = self.usual[place], _LOST[place]
        return 1.0 + (_USUAL_TURNS * usual + lost * self.kept[place]) / (_USUAL_TURNS + self.seen)

    def hopeful(self, place: int) -> float:
        """The same for a text that keeps a standard deviation more than is known of it."""
        return self.tokens(place) + 1 / math.sqrt(_APART**-2 + self.seen * _EACH**-2)

    def cost(self, place: int, verify: Sequence[float]) -> float:
        """Cost of a turn of width number `place`, in plain steps: measured, or estimated from the measured ones.

        Args:
            place: number of the width.
            verify: cost of the engine's passes by their rows, with the host's time for each.
        """
        if (known := self.costs.get(WIDTHS[place])) is not None:
            return known
        thought = [
            max(usual, verify[min(width, len(verify) - 1)]) for usual, width in zip(_USUAL_COST, WIDTHS, strict=True)
        ]
        seen = [number for number, width in enumerate(WIDTHS) if width in self.costs]
        if not seen:
            return thought[place]
        nearest = min(seen, key=lambda number: abs(number - place))
        found = self.costs[WIDTHS[nearest]]
        return 1.0 + max(0.0, found - 1.0) * (thought[place] - 1) / (thought[nearest] - 1)

    def saw_plain(self, seconds: float, ahead: int) -> None:
        """A plain step took `seconds` in a pass that went ahead for `ahead` more."""
        if ahead >= _LEAST_AHEAD and seconds > 0:
            known = self.plain_s
            self.plain_s = known + (min(seconds, 1.5 * known) - known) / _COST_MEMORY if known else seconds

    def learn(self, width: int, kept: Sequence[int], cost: float) -> None:
        """Count the turns of a pass.

        Args:
            width: rows of a turn.
            kept: drafted tokens that each of them kept.
            cost: cost of a turn, in plain steps.
        """
        self._count(width, kept, 1.0)
        known = self.costs.get(width)
        self.costs[width] = cost if known is None else known + (min(cost, 1.5 * known) - known) / _COST_MEMORY

    def miss(self, kept: Sequence[int]) -> None:
        """Count turns that plain steps took the place of, and that would have kept `kept` tokens."""
        self._count(_MISSED_WIDTH, kept, _MISSED)

    def _count(self, width: int, kept: Sequence[int], weight: float) -> None:
        place = WIDTHS.index(width) if width in WIDTHS else len(WIDTHS) - 1
        for count in kept:
            self.seen += weight * (1.0 - self.seen / _MEMORY)
            for number, other in enumerate(WIDTHS):
                # A draft that was kept whole might have been longer in a wider tree.
                longer = count + 2 * (number - place) if count >= width - 1 and number > place else count
                found = min(longer, other - 1) / (_LOST[place] if number <= place else 1.0)
                self.kept[number] += weight * (found - self.kept[number] / _MEMORY)

    def begin(self, prompt_tokens: int) -> None:
        """A text whose prompt has that many tokens begins to be answered."""
        self.usual = _QUOTED_KEPT if prompt_tokens >= LONG_PROMPT else _USUAL_KEPT

    def new_text(self) -> None:
        """Another text begins; costs do not depend on it."""
        self.seen *= _NEW_TEXT
        self.kept = [_NEW_TEXT * one for one in self.kept]
