"""What passes cost on this machine, kept up to date while tokens are made: `CostModel`.

Costs are in units of a pass over one row (a *dense step*): only ratios decide anything. `scale` turns them into
seconds. How costs are first measured is the engine's business; what is done with them, the policy's.

Where a pass holds rows of other sequences, the unit is this sequence's plain step in that pass (`CostModel.beside`), so
that rates stay comparable when sequences come and go. A draft step costs the same in a shared pass if all of them draft
in the same pass; one that drafts alone lets the others wait, and pays for that (`CostModel.draft_beside`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from specdec.policies.goodput.curve import MOST_ROWS, curve, tail, variances
from specdec.policies.goodput.length import least_row
from specdec.policies.goodput.related import Related, View
from specdec.policies.goodput.ways import ATTENTION, SHORT, Way

from specdec.engine.policy import CostTable

__all__ = ["MOST_ROWS", "CostModel"]

# Variances of logarithms.
_MEASURED = 0.1**2  # of a cost in a table that does not say
_LEAST = 0.03**2  # of any cost: passes of a round are not quite those of a table
_SHARED = 2.0  # of what costs of a table may be off by together, against each apart
_GUESSED = 0.3**2  # of a draft step's, from those of other efforts on one side
_UNKNOWN = 0.5**2  # of a cost that was never measured
_SCALE = 0.3**2  # of the scale of a process that has run nothing yet
_WANDER = 0.02**2  # what the scale gains from pass to pass: context grows, neighbours come and go
_CHANGE = 0.006**2  # what a cost gains each time it is seen
_NOISE, _LEAST_NOISE, _MOST_NOISE = 0.06**2, 0.02**2, 0.25
_NOISE_MEMORY = 24.0  # passes

_CLIP = 2.5  # standard deviations that one observation may be off: a machine that stalls is not a cost
_MOST_OFF = 1.2  # logarithm of the factor beyond which being off says no more
# Share of the square of what was clipped that goes to variances: if the next passes are off as well, it was no stall.
_TO_SCALE, _TO_COST, _TO_OTHERS = 0.15, 0.05, 0.05
_LATELY = 24  # passes
_SURPRISE = 0.3  # logarithm of the factor by which the scale moves when the machine has changed
_USUAL_MEMORY = 40.0  # rounds after which the scale is the usual one
_USUAL_DOUBT = 0.15  # standard deviation of a logarithm up to which a cost counts as known
_LOOKUP = 0.003  # a draft by a drafter that runs no model, until it is seen
_SOLITUDE_MEMORY = 12.0  # draft steps
_LOOKUP_OWN = 0.05  # share of the error of such a draft that its cost takes in


class CostModel:
    """Costs of verify passes by rows and of draft steps by way of drafting and effort.

    Logarithms of the scale and of each cost are Gaussian, and an observation's error is shared between the two by their
    variances (a Kalman filter without correlations). Costs of several rows, and those of the steps of a view, are
    `Related`: what one shows is taken over by those that were not seen. Errors beyond `_CLIP` deviations are clipped,
    which makes estimates follow medians: a stall hardly counts. But they widen the variances, also those of costs that
    were not seen lately, so that a table that was wrong, or a machine that has changed, is believed after a few passes.

    Args:
        table: seconds; what it lacks is interpolated, extrapolated or guessed, and learnt.

    Attributes:
        scale: seconds of a dense step.
        verify: cost of a pass by its number of rows, 0 to `MOST_ROWS`.
        source: the table.
    """

    def __init__(self, table: CostTable) -> None:
        self.source = table
        seconds = {rows: value for rows, value in table.verify_s.items() if rows >= 1 and value > 0}
        self._has_scale = 1 in seconds
        self.scale = self._usual_scale = seconds.get(1, 0.0)
        unit = self.scale or 1.0
        known = {rows: value / unit for rows, value in seconds.items()} if self._has_scale else {1: 1.0}
        self.verify = curve(known)
        self._measured = frozenset(known) if self._has_scale else frozenset()
        spreads = {rows: _squared(table.verify_spread.get(rows)) for rows in self._measured}
        apart = variances(spreads, _UNKNOWN)
        places = [math.log(max(rows, 1)) for rows in range(MOST_ROWS + 1)]
        common = min(_UNKNOWN, _SHARED * max(spreads.values(), default=_UNKNOWN))
        self._rows = Related(places, self.verify, apart, common=common, alone=2)
        self._tail = tail(known, self.verify)  # of a further row beyond MOST_ROWS
        most = max(known)
        self._tail_variance = _squared(table.verify_spread.get(most)) if most > MOST_ROWS else _UNKNOWN
        self._many: set[int] = set()  # numbers of rows beyond MOST_ROWS that passes have had
        self._row, self._row_of = 0.0, -1  # the least cost of a further row, and the changes that it knows
        self._scale_variance, self._noise, self._passes = _SCALE, _NOISE, 0
        self._views: dict[Way, View] = {}
        # Of draft steps in shared passes: 0 if all sequences draft in one pass, 1 if only this one does.
        self._solitude = 0.0
        if self._has_scale:
            for (drafter, view, effort), value in table.draft_s.items():
                variance = _squared(table.draft_spread.get((drafter, view, effort)))
                self._view(Way(drafter, view), variance).add(round(effort, 2), value / unit, variance)

    def row(self) -> float:
        """The least that a further row of a pass of this sequence alone costs."""
        if self._row_of != self._rows.changes:
            self._row, self._row_of = least_row(self.verify), self._rows.changes
        return self._row

    def beside(self, rows: int) -> list[float]:
        """Cost of this sequence's rows, 0 to `MOST_ROWS`, in a pass that holds `rows` of other sequences.

        Let V be the cost of a pass by all its rows. A plain step is one of `rows + 1` rows that each bring a token, so
        it costs V(rows + 1) / (rows + 1), and k - 1 rows more cost V(rows + k) - V(rows + 1). Both are given in units
        of the plain step. Counting V(rows + k) - V(rows) instead would charge no one for the part of a pass that all
        rows share: where rows are free a plain step would cost nothing, and no draft step could pay.
        """
        if not rows:
            return self.verify
        several = [self._pass(count) for count in range(rows + 1, rows + MOST_ROWS + 1)]
        first, plain, unit = self.verify[1], several[0], self._unit(rows)
        return [0.0, *[first + unit * max(0.0, cost - plain) for cost in several]]

    def draft(self, way: Way, effort: float) -> float:
        """Cost of a draft step; of a whole draft, for a drafter that reads no weights (`view` None)."""
        steps = self._views.get(way)
        if steps is not None and (index := steps.index.get(round(effort, 2))) is not None:
            return steps.costs[index]
        return self._guess(way, effort)

    def draft_beside(self, way: Way, effort: float, rows: int) -> float:
        """Cost of a draft step in units of this sequence's plain step in a pass with `rows` rows of others.

        Sequences that draft in the same pass share it as they share verify passes. While one drafts alone, the others
        wait: then the step counts whole against a plain step that is a part of a pass. What is expected lies between
        the two as steps did lately.
        """
        return self.draft(way, effort) * self._waiting(rows) if rows else self.draft(way, effort)

    def observe_verify(self, rows: int, seconds: float) -> None:
        """A pass over `rows` rows, of all its sequences, took `seconds`."""
        if seconds <= 0:
            return
        if not self._has_scale:
            self._first_pass(rows, seconds)
        elif rows > MOST_ROWS:
            self._observe_many(rows, seconds)
        else:
            self._observe(self._rows, rows, seconds)

    def _first_pass(self, rows: int, seconds: float) -> None:
        """Nothing was measured: the first pass says what the unit is."""
        self.scale = self._usual_scale = seconds / self._pass(rows)
        self._has_scale, self._passes = True, 1
        self._scale_variance = self._noise
        if rows == 1:
            self._rows.see(1, 0.0, 0.0, self._passes)
        else:
            self._scale_variance += self.doubt_of_rows(rows) ** 2

    def _observe(self, costs: Related, index: int, seconds: float) -> None:
        """Learn from a pass what it says of its cost."""
        last_s = costs.last_s[index]
        costs.last_s[index] = seconds
        variance = costs.variance(index, self._passes)
        step, variance = self._take(costs.costs[index], variance, seconds, last_s)
        costs.see(index, step, variance, self._passes)

    def _observe_many(self, rows: int, seconds: float) -> None:
        """Learn from a pass over more than `MOST_ROWS` rows what a further row costs."""
        self._many.add(rows)
        step, self._tail_variance = self._take(self._pass(rows), self._tail_variance, seconds, 0.0)
        self._tail *= math.exp(step)
        if not self._rows.is_seen(MOST_ROWS):
            self._rows.suppose(MOST_ROWS, self.verify[MOST_ROWS] * math.exp(0.5 * step))

    def observe_draft(self, way: Way, effort: float, seconds: float) -> float:
        """A draft step (a whole draft, for a drafter that reads no weights) took `seconds`; returns what it is now
        thought to cost."""
        if not self._has_scale or seconds <= 0:
            return self.draft(way, effort)
        effort = round(effort, 2)
        steps = self._view(way, _MEASURED)
        index = steps.index.get(effort)
        if index is None:
            index = steps.add(effort, self._guess(way, effort), _variance_of_guess(steps, effort, way))
        if way.view is None:  # no pass: it tells nothing of the scale
            error = math.log(seconds / (self.scale * steps.costs[index]))
            steps.costs[index] *= math.exp(_LOOKUP_OWN * max(-1.0, min(1.0, error)))
        else:
            self._observe(steps, index, seconds)
        return steps.costs[index]

    def observe_draft_beside(self, way: Way, effort: float, seconds: float, *, share: float, rows: int) -> float:
        """A draft step's pass, of which `share` was this sequence's, took `seconds`, while the verify pass had `rows`
        rows of others; returns what the step cost in units of this sequence's plain step there."""
        together = max(1, round(1 / share))
        alone = self.observe_draft(way, effort, seconds / self._pass(together) * self.verify[1])
        alike, unit = self._pass(together) / (together * self.verify[1]), self._unit(rows)
        if unit > 1:
            solitude = min(1.0, max(0.0, (alike * unit - 1) / (unit - 1)))
            self._solitude += (solitude - self._solitude) / _SOLITUDE_MEMORY
        return alone * alike * unit

    def _waiting(self, rows: int) -> float:
        """Cost of a draft step in a pass with `rows` rows of other sequences, relative to its cost alone."""
        return 1.0 + self._solitude * (self._unit(rows) - 1.0)

    def _unit(self, rows: int) -> float:
        """A plain step alone over one in a pass with `rows` rows of others."""
        return self.verify[1] * (rows + 1) / self._pass(rows + 1)

    def _pass(self, rows: int) -> float:
        """Cost of a pass over `rows` rows, at least 1."""
        return self.verify[min(rows, MOST_ROWS)] + max(0, rows - MOST_ROWS) * self._tail

    def _view(self, way: Way, variance: float) -> View:
        """Draft steps of a way of drafting; one with nothing in it before the first."""
        found = self._views.get(way)
        if found is None:
            found = self._views[way] = View(common=_SHARED * variance)
        return found

    def _take(self, cost: float, variance: float, seconds: float, last_s: float) -> tuple[float, float]:
        """Learn the scale from a pass.

        Args:
            cost: what it is thought to cost.
            variance: of the logarithm of that.
            seconds: that it took.
            last_s: that the last one of its kind took, 0 for none.

        Returns:
            How far the logarithm of the cost moves, and its variance then.
        """
        self._passes += 1
        if last_s:
            step = math.log(seconds / last_s)
            self._noise += (min(0.5 * step * step, _MOST_NOISE) - self._noise) / _NOISE_MEMORY
            if self._noise < _LEAST_NOISE:
                self._noise = _LEAST_NOISE
        error = math.log(seconds / (self.scale * cost))
        of_scale = self._scale_variance
        total = of_scale + variance + self._noise
        left, limit = variance - variance * variance / total + _CHANGE, _CLIP * math.sqrt(total)
        if not -limit < error < limit:
            excess = min(abs(error), _MOST_OFF) ** 2
            left += _TO_COST * excess
            self._scale_variance += _TO_SCALE * excess
            for costs in (self._rows, *self._views.values()):
                costs.widen(_TO_OTHERS * excess, _UNKNOWN, self._passes - _LATELY)
            error = limit if error > 0 else -limit
        share = error / total
        self.scale *= math.exp(of_scale * share)
        self._scale_variance += _WANDER - of_scale * of_scale / total
        return variance * share, left

    def has_changed(self) -> bool:
        """Whether passes lately take another time than before; says so once. What a plain pass costs beside the others
        is then uncertain."""
        off = math.log(self.scale / self._usual_scale) if self._has_scale else 0.0
        self._usual_scale *= math.exp(off / _USUAL_MEMORY)
        if abs(off) < _SURPRISE:
            return False
        self._usual_scale = self.scale
        self._rows.widen(_MEASURED, _UNKNOWN, self._passes - _LATELY)
        return True

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of a pass's time, from one to the next of its kind."""
        return math.sqrt(self._noise)

    def has_seen_rows(self, rows: int) -> bool:
        """Whether a pass over `rows` rows has run in this process."""
        return rows in self._many if rows > MOST_ROWS else self._rows.is_seen(rows)

    def has_seen_reach(self, way: Way) -> bool:
        """Whether steps that attend to as much have run in this process, in long contexts of any length."""
        return bool(self._like(way))

    def doubt_of_rows(self, rows: int) -> float:
        """Standard deviation of the logarithm of the cost of a pass over `rows` rows."""
        return math.sqrt(self._tail_variance if rows > MOST_ROWS else self._rows.variance(rows, self._passes))

    def doubt_of_draft(self, way: Way, effort: float) -> float:
        """Standard deviation of the logarithm of a draft step's cost."""
        steps = self._views.get(way)
        if steps is None:
            return math.sqrt(_UNKNOWN if way.reach == SHORT else _GUESSED)
        index = steps.index.get(round(effort, 2))
        return math.sqrt(
            _variance_of_guess(steps, effort, way) if index is None else steps.variance(index, self._passes)
        )

    def cheapest_draft(self, way: Way, effort: float) -> float:
        """The least that a draft step may cost, for all that is known."""
        return self.draft(way, effort) * _least_share(self.doubt_of_draft(way, effort))

    def cheapest(self, verify: Sequence[float], beside: int, most: int) -> list[float]:
        """`verify`, the costs in a pass with `beside` rows of others, at the lowest plausible price of further rows, at
        most `most` rows."""
        plain = verify[1]
        found = [0.0, plain]
        for rows in range(2, min(most, MOST_ROWS) + 1):
            found.append(max(plain, verify[rows] * _least_share(self.doubt_of_rows(beside + rows))))
        return found

    def absorb(self, table: CostTable) -> None:
        """Costs were measured again: take over those that the table knows better."""
        self.source = table
        rows = [(self._rows, m, s, table.verify_spread.get(m)) for m, s in table.verify_s.items() if 0 < m <= MOST_ROWS]
        entries = [(costs, index, seconds, _squared(spread)) for costs, index, seconds, spread in rows]
        for (drafter, view, effort), seconds in table.draft_s.items():
            variance = _squared(table.draft_spread.get((drafter, view, effort)))
            steps, place = self._view(Way(drafter, view), variance), round(effort, 2)
            index = steps.index.get(place)
            if index is None:
                index = steps.add(place, self._guess(Way(drafter, view), effort), _GUESSED)
            entries.append((steps, index, seconds, variance))
        if not self._has_scale or not entries:
            return
        scales = sorted(seconds / costs.costs[index] for costs, index, seconds, _ in entries)
        scale = scales[len(scales) // 2]  # of the moment when the table was measured
        for costs, index, seconds, variance in entries:
            if variance < costs.variance(index, self._passes):
                costs.suppose(index, seconds / scale, variance)

    def table(self) -> CostTable | None:
        """Measured and observed costs in seconds, with their spread; None before the first pass."""
        rows = [m for m in range(1, MOST_ROWS + 1) if m in self._measured or self._rows.is_seen(m)]
        if not self._has_scale or not any(map(self._rows.is_seen, rows)):
            return None
        steps = {
            (way.drafter, way.view, effort): view.costs[index]
            for way, view in self._views.items()
            for effort, index in view.index.items()
            if way.view is not None and way.reach == SHORT
        }
        return CostTable(
            verify_s={m: self.scale * self.verify[m] for m in rows},
            verify_spread={m: self.doubt_of_rows(m) for m in rows},
            draft_s={key: self.scale * cost for key, cost in steps.items()},
            draft_spread={key: self.doubt_of_draft(Way(*key[:2]), key[2]) for key in steps},
            turn_s=self.source.turn_s,
        )

    def seconds_of_dense_step(self) -> float:
        """Seconds of a pass over one row, 0 before any was seen."""
        return self.scale * self.verify[1]

    def seconds_of_plain_step(self, beside: int = 0) -> float:
        """Seconds of a pass over one row of this sequence and `beside` of others; 0 before any was seen."""
        return self.scale * self._pass(beside + 1)

    def _guess(self, way: Way, effort: float) -> float:
        """From the nearest known effort of the same way, or from contexts of another length, or from nothing."""
        if way.view is None:
            return _LOOKUP
        if way.reach != SHORT:
            return self._guess_long(way, effort)
        steps = self._views.get(way)
        if steps is None or not steps.costs:
            return _typical(effort)
        below, above = steps.around(effort)
        if below is not None and above is not None:
            low, high = steps.cost(below), steps.cost(above)
            return low + (high - low) * (effort - below) / (above - below)
        nearest = below if below is not None else above
        assert nearest is not None
        return steps.cost(nearest) * _typical(effort) / _typical(nearest)

    def _like(self, way: Way) -> list[Way]:
        """The ways in long contexts that attend to as much, whose steps were seen."""
        long = [one for one, view in self._views.items() if one[:2] == way[:2] and one.reach.context and view.index]
        return [one for one in long if one.reach.windowed == way.reach.windowed]

    def _guess_long(self, way: Way, effort: float) -> float:
        """From the cost in short contexts, and what attention costs by the nearest step that was seen in a long one: of
        drafts that attend to as much, or else of others."""
        short, reach = Way(way.drafter, way.view), way.reach
        like = self._like(way) or self._like(way._replace(reach=reach._replace(windowed=not reach.windowed)))
        if not like:
            return reach.cost(self.draft(short, effort), ATTENTION)
        nearest = min(like, key=lambda one: abs(math.log(one.reach.context / reach.context)))
        seen = self._views[nearest]
        known = min(seen.index, key=lambda one: abs(one - effort))
        cost, base = seen.costs[seen.index[known]], self.draft(short, known)
        attention = nearest.reach.attention(base, cost)
        alike = nearest.reach.windowed == reach.windowed
        error = cost / nearest.reach.cost(base, attention) if alike else 1.0
        return error * reach.cost(self.draft(short, effort), attention)


def _typical(effort: float) -> float:
    """Share of a dense step that a step of a 4-bit view costs."""
    return 0.12 + 0.25 * effort


def _variance_of_guess(steps: View, effort: float, way: Way) -> float:
    """Variance of the logarithm of the cost of an effort that is guessed from others."""
    if not steps.index:
        return _UNKNOWN if way.reach == SHORT else _GUESSED
    is_told = way.reach != SHORT or min(steps.index) < effort < max(steps.index)  # by short contexts, or both sides
    return 2.0 * _MEASURED if is_told else _GUESSED


def _least_share(doubt: float) -> float:
    """Share of a cost that it may be in truth."""
    return 1.0 if doubt < _USUAL_DOUBT else math.exp(_USUAL_DOUBT - doubt)


def _squared(spread: float | None) -> float:
    """Variance of a cost in a table, which may not say what its spread is."""
    return _MEASURED if spread is None else max(spread * spread, _LEAST)
