"""Which tables of costs cannot be, and what they most likely were: `faults` and `made_plausible`.

A pass over more rows does all that one over fewer does, and a draft step at a higher effort reads all that one at a
lower effort reads. So a table in which the larger one is cheaper by more than noise was measured in a busy moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from specdec.engine.policy import CostTable, DraftKey

TOLERANCE = 0.05  # share by which the larger of two may be cheaper: noise
_MOST_A_ROW = 1.5  # most that a pass may cost, as a multiple of its rows one by one
_LEAST_STEP, _MOST_STEP = 0.003, 4.0  # a draft step, in passes over one row
_SLACK = 1.001  # rounding

DEFAULT_SPREAD = 0.1

_Key = TypeVar("_Key")


def faults(table: CostTable) -> list[str]:
    """What is impossible in a table, in words; nothing in one that may be right."""
    found = []
    plain = table.verify_s.get(1)
    rows = sorted(table.verify_s)
    for fewer, more in pairwise(rows):
        if table.verify_s[more] < table.verify_s[fewer] * (1 - TOLERANCE):
            found.append(f"{more} rows cost less than {fewer}")
    if plain:
        for count in rows:
            if table.verify_s[count] > plain * count * _MOST_A_ROW * _SLACK:
                found.append(f"{count} rows cost more than as many passes")
        for key, seconds in table.draft_s.items():
            if not _LEAST_STEP / _SLACK <= seconds / plain <= _MOST_STEP * _SLACK:
                found.append(f"a draft step at {_name(key)} costs {seconds / plain:.3g} passes")
    for steps in _by_view(table.draft_s).values():
        for lower, higher in pairwise(steps):
            if table.draft_s[higher] < table.draft_s[lower] * (1 - TOLERANCE):
                found.append(f"a draft step at {_name(lower)} costs more than one at effort {higher[2]:g}")
    return found


def made_plausible(table: CostTable) -> CostTable:
    """The nearest table that may be right: costs rise with rows and efforts, and ratios are within bounds.

    Logarithms are pooled where they fall (isotonic regression, pool adjacent violators), weighted by what is known of
    each. What was moved has a spread of at least as much.
    """
    rows = sorted(table.verify_s)
    spreads = [table.verify_spread.get(one, DEFAULT_SPREAD) for one in rows]
    pooled = isotonic([math.log(table.verify_s[one]) for one in rows], spreads)
    if rows and rows[0] == 1:
        pooled = [min(value, pooled[0] + math.log(_MOST_A_ROW * one)) for one, value in zip(rows, pooled, strict=True)]
        pooled = [max(value, pooled[0]) for value in pooled]
    verify_s, verify_spread = _moved(rows, pooled, table.verify_s, spreads)
    draft_s: dict[DraftKey, float] = {}
    draft_spread: dict[DraftKey, float] = {}
    for steps in _by_view(table.draft_s).values():
        spreads = [table.draft_spread.get(key, DEFAULT_SPREAD) for key in steps]
        pooled = isotonic([math.log(table.draft_s[key]) for key in steps], spreads)
        if plain := verify_s.get(1):
            low, high = math.log(plain * _LEAST_STEP), math.log(plain * _MOST_STEP)
            pooled = [min(max(value, low), high) for value in pooled]
        seconds, spread = _moved(steps, pooled, table.draft_s, spreads)
        draft_s |= seconds
        draft_spread |= spread
    return CostTable(
        verify_s=verify_s, verify_spread=verify_spread, draft_s=draft_s, draft_spread=draft_spread, turn_s=table.turn_s
    )


def isotonic(values: Sequence[float], spreads: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls, in weighted squares (pool adjacent violators).

    Args:
        values: any sequence.
        spreads: standard deviation of each; its weight is one over the square.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, members
    for value, spread in zip(values, spreads, strict=True):
        mean, weight, count = value, spread**-2, 1
        while blocks and blocks[-1][0] > mean:
            before, its_weight, its_count = blocks.pop()
            mean = (before * its_weight + mean * weight) / (its_weight + weight)
            weight, count = its_weight + weight, its_count + count
        blocks.append((mean, weight, count))
    return [mean for mean, _, count in blocks for _ in range(count)]


def _moved(
    keys: Sequence[_Key], pooled: Sequence[float], seconds: Mapping[_Key, float], spreads: Sequence[float]
) -> tuple[dict[_Key, float], dict[_Key, float]]:
    """Seconds and spreads after pooling."""
    made: dict[_Key, float] = {}
    spread: dict[_Key, float] = {}
    for key, value, its_spread in zip(keys, pooled, spreads, strict=True):
        made[key] = math.exp(value)
        spread[key] = max(its_spread, abs(value - math.log(seconds[key])))
    return made, spread


def _by_view(draft_s: Mapping[DraftKey, float]) -> dict[tuple[str, str | None], list[DraftKey]]:
    """The steps of each drafter and view, by rising effort."""
    views: dict[tuple[str, str | None], list[DraftKey]] = {}
    for key in sorted(draft_s, key=lambda one: one[2]):
        views.setdefault(key[:2], []).append(key)
    return views


def _name(key: DraftKey) -> str:
    drafter, view, effort = key
    return f"{drafter}{'' if view is None else ' ' + view} {effort:g}"
