"""What passes cost on this machine, measured once for a model: `machine_costs`.

Measured are exact passes over a few rows and draft steps of the model itself. The result is kept with the model and in
the cache folder; policies refine it while they run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec import paths
from specdec.engine.policy import CostTable, DraftOption
from specdec.errors import SpecdecError
from specdec.model.effort import Efforts, EffortSchedule
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.runtimes.base import EXACT, forward_one
from specdec.runtimes.timing import PassTimer, Timed
from specdec.version import version
from specdec.whole_file import whole_file

if TYPE_CHECKING:
    from specdec.model.loaded import Model

ROWS = (1, 3, 5, 9)
_CONTEXT = 16  # tokens that the measured passes look back on
_BUDGET_S = 1.2  # no second look at what took this long

_Draft = tuple[str, str | None, float]


def machine_costs(
    model: Model,
    options: Sequence[DraftOption],
    efforts: Callable[[float], EffortSchedule | Efforts],
    tried: Sequence[float],
) -> CostTable:
    """Seconds of exact passes and of the model's own draft steps.

    A model without a store is not measured: there is nothing to keep the result under.

    Args:
        model: whose passes to time.
        options: what may draft; only the drafter "effort" is timed, others are known once they have drafted.
        efforts: schedule for a mean effort.
        tried: efforts whose draft steps to time.
    """
    if model.store is None:
        return CostTable()
    wanted = [(one.drafter, one.view, effort) for one in options if one.drafter == "effort" for effort in tried]
    table, is_kept = model.memory.costs.table, model.memory.costs.is_kept
    if not table.verify_s and is_kept:
        table = _read(_file(model))
    missing = [key for key in wanted if key not in table.draft_s]
    if missing or not table.verify_s:
        table = _measure(model, efforts, missing, table)
        if is_kept:
            _write(_file(model), table)
    model.memory.costs.table = table
    return table


def _measure(
    model: Model, efforts: Callable[[float], EffortSchedule | Efforts], missing: Sequence[_Draft], known: CostTable
) -> CostTable:
    """`known`, and what it lacks: the quicker of two passes each, for nothing but noise makes one slower."""
    runtime, vocabulary = model.runtime, model.config.vocab_size
    most = max(ROWS)
    tokens = [index * 997 % vocabulary for index in range(_CONTEXT + most)]
    cache = runtime.new_cache(min(_CONTEXT + most, model.config.max_context))
    context = max(0, cache.capacity - most)
    if context:
        forward_one(runtime, tokens[:context], cache, logits="last")
    rows = [] if known.verify_s else [rows for rows in ROWS if context + rows <= cache.capacity]
    passes = [Timed(count, warm_up=False) for count in rows]
    passes += [Timed(1, efforts(effort), view or EXACT) for _, view, effort in missing]
    quickest = [min(seconds) for seconds in PassTimer(runtime, cache, tokens, passes).run(2, budget_s=_BUDGET_S / 2)]
    verify = dict(zip(rows, quickest, strict=False)) or known.verify_s
    draft = dict(known.draft_s) | dict(zip(missing, quickest[len(rows) :], strict=True))
    return CostTable(verify_s=verify, draft_s=draft)


def _file(model: Model) -> Path:
    """Where the costs of this model, as far as it is loaded, runtime, build, threads, machine and version are kept."""
    assert model.store is not None
    runtime: Any = model.runtime
    parts = (
        model.store.checksum,
        model.store.loaded_share,
        runtime.info.name,
        runtime.info.build,
        runtime.info.threads,
        platform.node(),
        platform.processor(),
        os.cpu_count(),
        version(),
    )
    return paths.home() / "costs" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> CostTable:
    """What is kept in a file; nothing, where there is none or it makes no sense."""
    try:
        kept = parse_json(read_regular(file, most_bytes=MOST_TEXT_BYTES))
        return CostTable(
            verify_s={int(rows): float(seconds) for rows, seconds in kept["verify_s"].items()},
            draft_s={(str(name), view, float(effort)): float(s) for name, view, effort, s in kept["draft_s"]},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return CostTable()


def _write(file: Path, table: CostTable) -> None:
    """Keep costs for the next time; where that cannot be done they are measured again then."""
    kept = {"verify_s": table.verify_s, "draft_s": [[*key, seconds] for key, seconds in table.draft_s.items()]}
    with contextlib.suppress(OSError, SpecdecError):
        paths.private_folder(file.parent)
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(kept), encoding="utf-8")
