"""Two tables of costs of the same model, from different moments: `joined` makes one of them, `disagreement` compares.

Only ratios within a table mean anything: between two moments the whole machine may have become slower.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from specdec.engine.plausible import DEFAULT_SPREAD, faults, made_plausible
from specdec.engine.policy import CostTable, DraftKey

_Key: TypeAlias = int | DraftKey  # rows of an exact pass, or a draft step
_WELL_KNOWN = 0.1  # spread up to which a cost can contradict another


def joined(old: CostTable, new: CostTable) -> CostTable:
    """One table of two: the old one is scaled to the new one by what they share, and costs that both know are means of
    logarithms, weighted by their spreads. Where two differ by more than their spreads explain, the spread is as
    wide."""
    before, entries = _entries(old), _entries(new)
    shift = _shift(before, entries)
    for key, (value, spread) in before.items():
        value += shift
        if key in entries:
            other, its_spread = entries[key]
            weight, its_weight = spread**-2, its_spread**-2
            value = (value * weight + other * its_weight) / (weight + its_weight)
            spread = max((weight + its_weight) ** -0.5, abs(value - other))
        entries[key] = value, spread
    rows = sorted(key for key in entries if isinstance(key, int))
    steps = [key for key in entries if not isinstance(key, int)]
    table = CostTable(
        verify_s={key: math.exp(entries[key][0]) for key in rows},
        draft_s={key: math.exp(entries[key][0]) for key in steps},
        verify_spread={key: entries[key][1] for key in rows},
        draft_spread={key: entries[key][1] for key in steps},
        turn_s=new.turn_s or old.turn_s,
    )
    return made_plausible(table) if faults(table) else table


def disagreement(old: CostTable, new: CostTable) -> float:
    """Logarithm of the largest factor by which a cost that the new table knows well is another one in the old table."""
    before, after = _entries(old), _entries(new)
    shift = _shift(before, after)
    known = [key for key in before if key in after and after[key][1] <= _WELL_KNOWN]
    return max((abs(after[key][0] - before[key][0] - shift) for key in known), default=0.0)


def _shift(before: dict[_Key, tuple[float, float]], after: dict[_Key, tuple[float, float]]) -> float:
    """Logarithm of the factor between two tables, from what they share: a mean weighted by spreads."""
    total = weights = 0.0
    for key in before.keys() & after.keys():
        weight = 1.0 / (before[key][1] ** 2 + after[key][1] ** 2)
        total += weight * (after[key][0] - before[key][0])
        weights += weight
    return total / weights if weights else 0.0


def _entries(table: CostTable) -> dict[_Key, tuple[float, float]]:
    """Logarithm of seconds and spread, by rows and draft steps."""
    entries: dict[_Key, tuple[float, float]] = {
        rows: (math.log(seconds), table.verify_spread.get(rows, DEFAULT_SPREAD))
        for rows, seconds in table.verify_s.items()
    }
    for key, seconds in table.draft_s.items():
        entries[key] = math.log(seconds), table.draft_spread.get(key, DEFAULT_SPREAD)
    return entries
