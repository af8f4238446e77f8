"""Costs of passes by their number of rows, where some are known: `curve`, `tail`, and how well: `variances`.

Costs are in units of a pass over one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_ROWS = 33  # of a verify pass: up to here each number of rows has a cost of its own
_UPPER = 17  # rows from which the slope beyond `MOST_ROWS` is taken, where nothing was measured there
_SLOPE = 0.1  # a further row of a pass, where nothing was measured
_FLOOR = 0.02  # least slope after the last measured number of rows
_BETWEEN = 0.06**2  # added for a cost between two known ones
_BEYOND = 0.12**2  # and for one beyond the last, each time the rows double


def curve(known: Mapping[int, float]) -> list[float]:
    """Costs for 0 to `MOST_ROWS` rows through the known ones, straight in between and beyond."""
    rows = sorted(known)
    costs = [0.0] * (MOST_ROWS + 1)
    for m in range(1, MOST_ROWS + 1):
        above = next((r for r in rows if r >= m), None)
        below = max(r for r in rows if r <= m)
        if above is not None:
            share = (m - below) / (above - below) if above > below else 0.0
            costs[m] = known[below] + share * (known[above] - known[below])
        else:
            previous = rows[-2] if len(rows) > 1 else None
            slope = _SLOPE if previous is None else (known[below] - known[previous]) / (below - previous)
            costs[m] = known[below] + (m - below) * max(slope, _FLOOR)
    return costs


def tail(known: Mapping[int, float], costs: list[float]) -> float:
    """Cost of a further row beyond `MOST_ROWS`, from the most rows measured or from the upper half of the curve."""
    most = max(known)
    if most > MOST_ROWS:
        return max(0.0, known[most] - costs[MOST_ROWS]) / (most - MOST_ROWS)
    return max(_FLOOR, (costs[MOST_ROWS] - costs[_UPPER]) / (MOST_ROWS - _UPPER))


def variances(known: Mapping[int, float], unknown: float) -> list[float]:
    """Variances of logarithms of costs for 0 to `MOST_ROWS` rows, from those of the known ones; at most `unknown`."""
    found = [unknown] * (MOST_ROWS + 1)
    for rows in range(1, MOST_ROWS + 1):
        below = max((one for one in known if one <= rows), default=None)
        above = min((one for one in known if one >= rows), default=None)
        if rows in known:
            found[rows] = known[rows]
        elif below is not None and above is not None:
            found[rows] = max(known[below], known[above]) + _BETWEEN
        elif below is not None:
            found[rows] = min(unknown, known[below] + _BEYOND * math.log2(rows / below))
    return found
