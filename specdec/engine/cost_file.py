"""Costs kept in the cache folder, from one process to the next, with their spread and age: `read_costs`, `write_costs`.

Nothing here fails: a file that cannot be read or makes no sense holds no costs, and what cannot be written is measured
again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec import paths
from specdec.engine.plausible import DEFAULT_SPREAD, faults
from specdec.engine.policy import CostTable, DraftKey
from specdec.errors import SpecdecError
from specdec.interrupts import unless_signalled
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.version import version
from specdec.whole_file import whole_file

if TYPE_CHECKING:
    from specdec.model.loaded import Model

_FORMAT = 2
_DAY_S = 86400.0
_SPREAD_A_DAY = 0.02  # what costs may drift in a day: drivers, neighbours, another clock rate
_MOST_BY_AGE, _MOST_SPREAD = 0.3, 1.0
_MOST_ENTRIES = 4096


def cost_file(model: Model) -> Path | None:
    """File of the costs of this model, its loaded part, runtime, build, threads, machine and version; None for a model
    without a store."""
    if model.store is None:
        return None
    runtime: Any = model.runtime
    name = paths.name_of(
        model.store.checksum,
        model.store.loaded_share,
        runtime.info.name,
        runtime.info.build,
        runtime.info.threads,
        *_machine(),
        version(),
    )
    return paths.home() / "costs" / f"{name}.json"


@cache
def _machine() -> tuple[str, str, int | None]:
    """Name, processor and number of cores; the system takes a tenth of a millisecond to say."""
    return platform.node(), platform.processor(), os.cpu_count()


def read_costs(file: Path) -> CostTable:
    """The costs in a file, their spread grown with their age; none where there are none or they cannot be."""
    try:
        kept = parse_json(read_regular(file, most_bytes=MOST_TEXT_BYTES))
        if kept["format"] != _FORMAT or len(kept["verify"]) + len(kept["draft"]) > _MOST_ENTRIES:
            return CostTable()
        days = max(0.0, time.time() - float(kept["at"])) / _DAY_S
        aged = min(_MOST_BY_AGE, _SPREAD_A_DAY * math.sqrt(days)) if math.isfinite(days) else _MOST_BY_AGE
        verify = {int(rows): (float(seconds), float(spread)) for rows, seconds, spread in kept["verify"]}
        draft: dict[DraftKey, tuple[float, float]] = {
            (str(name), None if view is None else str(view), float(effort)): (float(seconds), float(spread))
            for name, view, effort, seconds, spread in kept["draft"]
        }
        turn = {int(rows): float(seconds) for rows, seconds in kept.get("turn", ())}
    except unless_signalled(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return CostTable()
    entries = [*verify.values(), *draft.values()]
    entries += [(seconds, 0.0) for seconds in turn.values()]
    if not all(0 < seconds < math.inf and 0 <= spread <= _MOST_SPREAD for seconds, spread in entries):
        return CostTable()
    table = CostTable(
        verify_s={rows: seconds for rows, (seconds, _) in verify.items() if rows > 0},
        draft_s={key: seconds for key, (seconds, _) in draft.items()},
        verify_spread={rows: math.hypot(spread, aged) for rows, (_, spread) in verify.items()},
        draft_spread={key: math.hypot(spread, aged) for key, (_, spread) in draft.items()},
        turn_s=turn,
    )
    return CostTable() if faults(table) else table


def write_costs(file: Path, table: CostTable) -> None:
    """Keep costs for the next process, whole or not at all."""
    kept = {
        "format": _FORMAT,
        "at": time.time(),
        "verify": [[rows, s, _bounded(table.verify_spread.get(rows))] for rows, s in table.verify_s.items()],
        "draft": [[*key, s, _bounded(table.draft_spread.get(key))] for key, s in table.draft_s.items()],
        "turn": [[rows, s] for rows, s in table.turn_s.items()],
    }
    with contextlib.suppress(OSError, SpecdecError):
        paths.private_folder(file.parent)
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(kept), encoding="utf-8")


def _bounded(spread: float | None) -> float:
    return DEFAULT_SPREAD if spread is None else min(spread, _MOST_SPREAD)
