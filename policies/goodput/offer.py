"""What the rounds of a generation may draft with, sorted once: `Offer`. Every round asks for the same few things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specdec.policies.goodput.turn_results import WIDTHS
from specdec.policies.goodput.ways import Way, ways_of

from specdec.engine.policy import DraftOption, RoundState


class Offer:
    """The options of `RoundState.options`, by kind.

    Args:
        options: of every round, as long as they are these.

    Attributes:
        options: the same.
        models: the options that run a model.
        turning: the one that the runtime drafts by itself, for a sequence that is alone; None where there is none.
        widths: its widths, by their number in `WIDTHS`, and their rows.
    """

    __slots__ = ("_short", "models", "options", "turning", "widths")

    def __init__(self, options: tuple[DraftOption, ...]) -> None:
        self.options = options
        self.models = tuple(option for option in options if option.view is not None)
        self.turning = next((option for option in options if option.turn_rows >= WIDTHS[0]), None)
        rows = 0 if self.turning is None else self.turning.turn_rows
        self.widths = tuple((place, width) for place, width in enumerate(WIDTHS) if width <= rows)
        self._short = {(one.drafter, one.view): (Way(one.drafter, one.view),) for one in options}

    def are(self, options: tuple[DraftOption, ...]) -> bool:
        """Whether these are the options."""
        return options is self.options or options == self.options

    def turns(self, state: RoundState) -> DraftOption | None:
        """The option that the runtime drafts by itself in the round to come."""
        return None if state.rows_beside else self.turning

    def by_match(self, matches: Mapping[str, int]) -> Sequence[DraftOption]:
        """The options, those with the longest match first, those without one in their order."""
        if not any(matches.values()):
            return self.options
        return sorted(self.options, key=lambda one: -matches.get(one.drafter, 0))

    def ways(self, option: DraftOption, state: RoundState) -> tuple[Way, ...]:
        """The ways of an option in the round to come."""
        if option.windowed_from is None or state.position <= option.windowed_from:
            return self._short[option.drafter, option.view]
        return ways_of(option, state)

    def model_ways(self, state: RoundState) -> list[tuple[DraftOption, Way]]:
        """All ways in which models may draft in the round to come."""
        return [(option, way) for option in self.models for way in self.ways(option, state)]
