"""Logits of a text that a runtime reads in passes of given sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one


def logits_of(runtime: Any, ids: list[int], piece: int, *, effort: float = 1.0, view: str = "exact") -> np.ndarray:
    """Logits of all tokens, `piece` rows at a time."""
    kv, schedule = runtime.new_cache(len(ids)), EffortSchedule(effort)
    pieces = [ids[first : first + piece] for first in range(0, len(ids), piece)]
    return np.concatenate([forward_one(runtime, rows, kv, effort=schedule, view=view).logits for rows in pieces])


def in_passes(
    runtime: Any, ids: Sequence[int], sizes: Sequence[int], *, capacity: int = 0, effort: EffortSchedule, view: str
) -> np.ndarray:
    """Logits of the first `sum(sizes)` tokens, in passes of these numbers of rows."""
    cache, logits = runtime.new_cache(max(capacity, sum(sizes))), []
    for size in sizes:
        part = ids[cache.length : cache.length + size]
        logits.append(forward_one(runtime, part, cache, effort=effort, view=view).logits)
    return np.concatenate(logits)
