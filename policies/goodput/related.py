"""Costs along an axis that are likely to be off by the same factor: `Related`, as passes over several rows are, and
`View` for draft steps.

A cost that was seen corrects those nearby that were not, by most of its own correction: a table that was measured in a
busy moment, or a machine that changes, is off in whole stretches. Once a cost is seen it goes its own way.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

_FOLLOWS = 0.8  # share of a correction that costs take over which were not seen
AGE = 1e-5  # variance that a cost gains with each pass that does not show it


class Related:
    """Costs by index, with what is known of each.

    Attributes:
        changes: of costs so far.

    Args:
        places: of the costs on their axis, ascending.
        costs: changed in place.
        variances: of their logarithms, each apart from the others.
        common: variance of what all of them may be off by together.
        alone: number of the first ones that have nothing to do with the others.
    """

    __slots__ = (
        "_alone", "_common", "_followers", "_leaders", "_places", "_seen", "_shifts", "_variances", "changes", "costs",
        "last_s",
    )  # fmt: skip

    def __init__(
        self, places: Sequence[float], costs: list[float], variances: Sequence[float], *, common: float, alone: int = 0
    ) -> None:
        self.costs, self._common, self._alone, self.changes = costs, common, alone, 0
        self.last_s = [0.0] * len(costs)
        """Seconds of the last pass of each."""
        self._places, self._variances = list(places), list(variances)
        self._seen = [0] * len(costs)  # number of the pass that showed it last
        self._shifts = [0.0] * len(costs)  # logarithm of the correction so far
        self._leaders: list[list[tuple[int, float]]] = [[] for _ in costs]  # seen neighbours, and their weights
        self._followers: list[list[tuple[int, float]]] = [[] for _ in costs]

    def is_seen(self, index: int) -> bool:
        """Whether a cost was seen in this process."""
        return self._seen[index] > 0

    def variance(self, index: int, now: int) -> float:
        """Variance of the logarithm of a cost, at the `now`-th pass."""
        own = self._variances[index]
        if self._seen[index]:
            return own + AGE * (now - self._seen[index])
        leaders = self._leaders[index]
        if not leaders:
            return own if index < self._alone else own + self._common
        for leader, weight in leaders:
            unshared = (1.0 - _FOLLOWS) * self._shifts[leader]
            own += weight * (_FOLLOWS * _FOLLOWS * self._variances[leader] + unshared * unshared)
        return own

    def see(self, index: int, step: float, variance: float, now: int) -> None:
        """The `now`-th pass has shown a cost: its logarithm moves by `step` and has `variance` now."""
        self.changes += 1
        is_new = not self._seen[index]
        self._seen[index], self._variances[index] = now, variance
        if is_new:
            self._choose_leaders()
        self.costs[index] *= math.exp(step)
        self._shifts[index] += step
        if abs(step) > 1e-3:
            for follower, weight in self._followers[index]:
                taken = _FOLLOWS * weight * step
                self.costs[follower] *= math.exp(taken)
                self._shifts[follower] += taken

    def suppose(self, index: int, cost: float, variance: float | None = None) -> None:
        """A cost follows from something else than a pass of its own; with None it is known as well as before."""
        self.changes += 1
        self.costs[index] = cost
        if variance is not None:
            self._variances[index] = variance

    def widen(self, variance: float, most: float, lately: int) -> None:
        """Costs that were not seen since the pass `lately` may be off by more."""
        for index, seen in enumerate(self._seen):
            if seen <= lately and (seen or index < self._alone):
                self._variances[index] = min(self._variances[index] + variance, most)
        self._common = min(self._common + variance, most)  # counts where none was seen

    def add(self, place: float, cost: float, variance: float) -> int:
        """A further cost; returns its index."""
        self._places.append(place)
        self.costs.append(cost)
        self._variances.append(variance)
        self._seen.append(0)
        self._shifts.append(0.0)
        self.last_s.append(0.0)
        self._choose_leaders()
        return len(self.costs) - 1

    def _choose_leaders(self) -> None:
        """Whom those that were not seen follow: their seen neighbours on both sides, the nearer the more."""
        count = len(self.costs)
        self._leaders = [[] for _ in range(count)]
        self._followers = [[] for _ in range(count)]
        seen = sorted((self._places[index], index) for index in range(self._alone, count) if self._seen[index])
        for index in range(self._alone, count):
            if self._seen[index] or not seen:
                continue
            place = self._places[index]
            right = bisect_left(seen, (place, index))
            if right in (0, len(seen)):
                leaders = [(seen[min(right, len(seen) - 1)][1], 1.0)]
            else:
                (low, lower), (high, upper) = seen[right - 1], seen[right]
                share = (place - low) / (high - low)
                leaders = [(lower, 1.0 - share), (upper, share)]
            self._leaders[index] = leaders
            for leader, weight in leaders:
                self._followers[leader].append((index, weight))


class View(Related):
    """Costs of the steps of a drafter and view, by `index` of the effort."""

    __slots__ = ("_efforts", "index")

    def __init__(self, *, common: float) -> None:
        super().__init__([], [], [], common=common)
        self.index: dict[float, int] = {}
        self._efforts: list[float] = []  # ascending

    def add(self, place: float, cost: float, variance: float) -> int:
        """An effort; returns its index."""
        self.index[place] = super().add(place, cost, variance)
        insort(self._efforts, place)
        return self.index[place]

    def cost(self, effort: float) -> float:
        """The cost of an effort that was added."""
        return self.costs[self.index[effort]]

    def around(self, effort: float) -> tuple[float | None, float | None]:
        """The nearest efforts that were added up to this one, and from this one on; None where there is none."""
        efforts = self._efforts
        right = bisect_left(efforts, effort)
        above = efforts[right] if right < len(efforts) else None
        return (above if above == effort else efforts[right - 1] if right else None), above
