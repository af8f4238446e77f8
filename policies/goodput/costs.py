"""What passes cost on this machine, kept up to date while tokens are made: `CostModel`.

Costs are in units of a pass over one row (a *dense step*): only ratios decide anything. `scale` turns them into
seconds. How costs are first measured is the engine's business; what is done with them, the policy's.

Where a pass holds rows of other sequences, the unit is this sequence's plain step in that pass (`CostModel.beside`), so
that rates stay comparable when sequences come and go. Draft steps, which sequences run together too, keep their costs.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from specdec.engine.policy import CostTable

_Key: TypeAlias = tuple[str, str | None, float]  # drafter, view, effort

MOST_ROWS = 33  # of a verify pass: up to here each number of rows has a cost of its own
_UPPER = 17  # rows from which the slope beyond `MOST_ROWS` is taken, where nothing was measured there
_SLOPE = 0.1  # a further row of a pass, where nothing was measured
_FLOOR = 0.02  # least slope after the last measured number of rows
_CLIP = 0.3  # most that one observation may be off, in log: a machine that stalls is not a cost
_DRIFT = 0.08  # share of an error that goes to all costs alike (context grows, a neighbour takes the processor)
_OWN = 0.03  # share that goes to the one that was seen, once it is well known
_SURPRISE = 0.12  # mean logarithmic error of recent passes that no noise makes: the machine has changed
_SURPRISE_MEMORY = 12.0  # passes
_KNOWN = 3.0  # observations that a measured cost counts for
_LOOKUP = 0.003  # a draft by a drafter that runs no model, until it is seen


class CostModel:
    """Costs of verify passes by rows and of draft steps by drafter, view and effort.

    Every observation moves an estimate by a share of its clipped logarithmic error, which makes the estimates follow
    medians rather than means: what is rare and large, such as a stall, hardly counts.

    Args:
        table: measured seconds; what it lacks is interpolated, extrapolated or guessed, and learnt.
    """

    def __init__(self, table: CostTable) -> None:
        seconds = {rows: value for rows, value in table.verify_s.items() if rows >= 1 and value > 0}
        self.scale = seconds.get(1, 0.0)
        self._has_scale = 1 in seconds
        unit = self.scale or 1.0
        known = {rows: value / unit for rows, value in seconds.items()} if self._has_scale else {1: 1.0}
        self.verify = _curve(known)
        """Cost of a pass, by its number of rows, 0 to `MOST_ROWS`."""
        self._seen = [_KNOWN if rows in seconds else 0.0 for rows in range(MOST_ROWS + 1)]
        self._tail = _tail(known, self.verify)  # cost of a further row beyond MOST_ROWS
        self._tail_seen = 0.0
        self._error = 0.0  # mean logarithmic error of recent passes
        self._draft: dict[_Key, float] = {}
        self._draft_seen: dict[_Key, float] = {}
        if self._has_scale:
            for (drafter, view, effort), value in table.draft_s.items():
                key = (drafter, view, round(effort, 2))
                self._draft[key], self._draft_seen[key] = value / unit, _KNOWN

    def beside(self, rows: int) -> list[float]:
        """Cost of this sequence's rows, 0 to `MOST_ROWS`, in a pass that holds `rows` of other sequences.

        Let V be the cost of a pass by all its rows. A plain step is one of `rows + 1` rows that each bring a token, so
        it costs V(rows + 1) / (rows + 1), and k - 1 rows more cost V(rows + k) - V(rows + 1). Both are given in units
        of the plain step. Counting V(rows + k) - V(rows) instead would let nobody pay for the part of a pass that all
        rows share: where rows are free a plain step would cost nothing, and no draft step could pay.
        """
        if not rows:
            return self.verify
        known, last, tail = self.verify, self.verify[MOST_ROWS], self._tail
        several = [
            known[count] if count <= MOST_ROWS else last + (count - MOST_ROWS) * tail
            for count in range(rows + 1, rows + MOST_ROWS + 1)
        ]
        plain, unit = several[0], known[1] * (rows + 1) / several[0]
        return [0.0, *[known[1] + unit * max(0.0, cost - plain) for cost in several]]

    def draft(self, drafter: str, view: str | None, effort: float) -> float:
        """Cost of a draft step; of a whole draft, for a drafter that reads no weights (`view` None)."""
        key = (drafter, view, round(effort, 2))
        cost = self._draft.get(key)
        return self._guess(key) if cost is None else cost

    def observe_verify(self, rows: int, seconds: float) -> None:
        """A pass over `rows` rows, of all its sequences, took `seconds`."""
        if seconds <= 0:
            return
        if rows > MOST_ROWS:
            self._observe_many(rows, seconds)
            return
        if not self._has_scale:
            self.scale, self._has_scale = seconds / self.verify[rows], True
            return
        error = _clipped(seconds / (self.scale * self.verify[rows]))
        self._error += (error - self._error) / _SURPRISE_MEMORY
        self._seen[rows] += 1
        self.scale *= math.exp(_DRIFT * error)
        factor = math.exp(max(_OWN, 0.5 / self._seen[rows]) * error)
        self.verify[rows] *= factor
        for near in (rows - 1, rows + 1):  # what was never seen goes half the way with its neighbour
            if 1 < near <= MOST_ROWS and not self._seen[near]:
                self.verify[near] *= math.sqrt(factor)

    def _observe_many(self, rows: int, seconds: float) -> None:
        """Learn from a pass over more than `MOST_ROWS` rows what a further row costs."""
        cost = self.verify[MOST_ROWS] + (rows - MOST_ROWS) * self._tail
        if not self._has_scale:
            self.scale, self._has_scale = seconds / cost, True
            return
        error = _clipped(seconds / (self.scale * cost))
        self._tail_seen += 1
        self.scale *= math.exp(_DRIFT * error)
        factor = math.exp(max(_OWN, 0.5 / self._tail_seen) * error)
        self._tail *= factor
        if not self._seen[MOST_ROWS]:
            self.verify[MOST_ROWS] *= math.sqrt(factor)

    def observe_draft(self, drafter: str, view: str | None, effort: float, seconds: float) -> float:
        """A draft step (a whole draft, for a drafter that reads no weights) took `seconds`; returns what it is now
        thought to cost."""
        if not self._has_scale or seconds <= 0:
            return self.draft(drafter, view, effort)
        key = (drafter, view, round(effort, 2))
        cost, seen = self._draft.get(key), self._draft_seen.get(key, 0.0)
        self._draft_seen[key] = seen + 1
        if cost is None:
            cost = self._draft[key] = seconds / self.scale
            return cost
        error = _clipped(seconds / (self.scale * cost))
        cost = self._draft[key] = cost * math.exp(max(_OWN, 0.5 / (seen + 1)) * error)
        if view is not None:
            self.scale *= math.exp(_DRIFT * error)
        return cost

    def has_changed(self) -> bool:
        """Whether passes lately took another time than was thought; says so once, and then learns fast again."""
        if abs(self._error) < _SURPRISE:
            return False
        self._error = 0.0
        self._seen = [min(seen, 1.0) for seen in self._seen]
        self._draft_seen = {key: min(seen, 1.0) for key, seen in self._draft_seen.items()}
        return True

    def seconds_of_dense_step(self) -> float:
        """Seconds of a pass over one row, 0 before any was seen."""
        return self.scale * self.verify[1]

    def seconds_of_plain_step(self, beside: int = 0) -> float:
        """Seconds of a pass over one row of this sequence and `beside` of others; 0 before any was seen."""
        extra = max(0, beside + 1 - MOST_ROWS)
        return self.scale * (self.verify[min(beside + 1, MOST_ROWS)] + extra * self._tail)

    def _guess(self, key: _Key) -> float:
        """From the nearest effort of the same drafter and view that is known, or from nothing."""
        drafter, view, effort = key
        if view is None:
            return _LOOKUP
        known = [(abs(k[2] - effort), k[2]) for k in self._draft if k[:2] == (drafter, view)]
        if not known:
            return _typical(effort)
        below = max((e for _, e in known if e <= effort), default=None)
        above = min((e for _, e in known if e >= effort), default=None)
        if below is not None and above is not None:
            low, high = self._draft[drafter, view, below], self._draft[drafter, view, above]
            return low + (high - low) * (effort - below) / (above - below)
        nearest = min(known)[1]
        return self._draft[drafter, view, nearest] * _typical(effort) / _typical(nearest)


def _typical(effort: float) -> float:
    """Share of a dense step that a step of a 4-bit view costs."""
    return 0.12 + 0.25 * effort


def _clipped(ratio: float) -> float:
    return max(-_CLIP, min(_CLIP, math.log(ratio)))


def _curve(known: dict[int, float]) -> list[float]:
    """Costs for 0 to `MOST_ROWS` rows through the known ones, straight in between and beyond."""
    rows = sorted(known)
    curve = [0.0] * (MOST_ROWS + 1)
    for m in range(1, MOST_ROWS + 1):
        above = next((r for r in rows if r >= m), None)
        below = max(r for r in rows if r <= m)
        if above is not None:
            share = (m - below) / (above - below) if above > below else 0.0
            curve[m] = known[below] + share * (known[above] - known[below])
        else:
            previous = rows[-2] if len(rows) > 1 else None
            slope = _SLOPE if previous is None else (known[below] - known[previous]) / (below - previous)
            curve[m] = known[below] + (m - below) * max(slope, _FLOOR)
    return curve


def _tail(known: dict[int, float], curve: list[float]) -> float:
    """Cost of a further row beyond `MOST_ROWS`, from the most rows measured or from the upper half of the curve."""
    most = max(known)
    if most > MOST_ROWS:
        return max(0.0, known[most] - curve[MOST_ROWS]) / (most - MOST_ROWS)
    return max(_FLOOR, (curve[MOST_ROWS] - curve[_UPPER]) / (MOST_ROWS - _UPPER))
