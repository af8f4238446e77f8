"""The efforts that are worth having in each way of drafting: `Menu`, and the `Menus` of one generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from specdec.policies.goodput.acceptance import DraftAcceptance
from specdec.policies.goodput.length import best_length
from specdec.policies.goodput.ways import Way

from specdec.engine.policy import DraftOption, RoundState

if TYPE_CHECKING:
    from specdec.policies.goodput.prospect import Situation

EFFORTS = (0.2, 0.35, 0.5, 0.7, 1.0)  # ascending
# Tokens drafted before signals are looked at, where average drafts are twice as long. More would too often be dropped.
_AT_ONCE = 2
_REFRESH = 4  # rounds between looks at which efforts are worth having


@dataclass(slots=True)
class Menu:
    """The efforts of one way of drafting that are worth having, and the best of them for all steps alike.

    An effort comes with the cost of its step and the chance that its token is kept.

    Attributes:
        option: what drafts.
        way: how it drafts.
        acceptance: of it.
        efforts: those worth having, cheapest first.
        best: one of them.
        made: number of the generation's round for which the menu was made.
        beside: rows of other sequences in the pass then.
        at_once: tokens that a draft at the best effort has in nearly any case.
        least_margin: margin after whose token one more pays for itself at that effort, early in a draft.
        candidates: the efforts alone.
    """

    option: DraftOption
    way: Way
    acceptance: DraftAcceptance
    efforts: list[tuple[float, float, float]]
    best: tuple[float, float, float]
    made: int
    beside: int = 0
    at_once: int = 1
    least_margin: float = 0.0
    candidates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.candidates = [effort for effort, _, _ in self.efforts]


@dataclass(slots=True)
class Menus:
    """The menus of a generation, by way of drafting, looked over every few rounds.

    Attributes:
        only: the only effort to use; None chooses among several, unless the caller named one.
        longest: most tokens that a model drafts in a round.
    """

    only: float | None
    longest: int
    _made: dict[Way, Menu] = field(default_factory=dict)

    def efforts(self, option: DraftOption, state: RoundState) -> tuple[float, ...]:
        """Efforts that a way of drafting may use."""
        if not option.takes_effort:
            return (1.0,)
        if self.only is not None:
            return (self.only,)
        return (state.draft_effort,) if state.is_effort_asked else EFFORTS

    def get(self, way: Way) -> Menu | None:
        """The menu that was made last; None before the first."""
        return self._made.get(way)

    def of(self, option: DraftOption, way: Way, now: Situation, rate: float) -> Menu:
        """Efforts of a way of drafting, less those that cost as much as a better one.

        Args:
            option: what drafts.
            way: how it drafts.
            now: before the round.
            rate: tokens that a dense step is worth.
        """
        state = now.state
        beside, menu = state.rows_beside, self._made.get(way)
        if (
            menu is not None
            and state.round_index < menu.made + _REFRESH
            and abs(beside - menu.beside) <= menu.beside // 4
        ):
            return menu
        acceptance, costs, lean = now.learnt.accepted(way), now.learnt.costs, way.reach.lean
        efforts = self.efforts(option, state)
        means = acceptance.after.means(efforts, lean)
        entries = [
            (effort, costs.draft_beside(way, effort, beside), mean) for effort, mean in zip(efforts, means, strict=True)
        ]
        useful, highest = [], 0.0
        for one in sorted(entries, key=itemgetter(1)):  # a dearer effort has to agree more
            if one[2] > highest:
                useful.append(one)
                highest = one[2]
        best, most, at_once, verify = useful[0], -1e9, 1, now.verify
        for one in useful:
            length, tokens, cost = best_length(verify, one[1], one[2], rate, self.longest, now.row)
            if tokens - rate * cost > most:
                best, most, at_once = one, tokens - rate * cost, _AT_ONCE if length >= 2 * _AT_ONCE else 1
        least = acceptance.least_margin(best[0], rate * (best[1] + verify[3] - verify[2]), lean)
        menu = self._made[way] = Menu(option, way, acceptance, useful, best, state.round_index, beside, at_once, least)
        return menu
