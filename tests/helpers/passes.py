"""Logits of a text that a runtime reads in passes of a given size."""

from __future__ import annotations

from typing import Any

import numpy as np

from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one


def logits_of(runtime: Any, ids: list[int], piece: int, *, effort: float = 1.0, view: str = "exact") -> np.ndarray:
    """Logits of all tokens, `piece` rows at a time."""
    kv, schedule = runtime.new_cache(len(ids)), EffortSchedule(effort)
    pieces = [ids[first : first + piece] for first in range(0, len(ids), piece)]
    return np.concatenate([forward_one(runtime, rows, kv, effort=schedule, view=view).logits for rows in pieces])
