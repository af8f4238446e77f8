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
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec import paths
from specdec.engine.policy import CostTable, DraftOption
from specdec.errors import SpecdecError
from specdec.model.effort import Efforts, EffortSchedule
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.runtimes.base import forward_one
from specdec.version import version
from specdec.whole_file import whole_file

if TYPE_CHECKING:
    from specdec.model.loaded import Model
    from specdec.runtimes.base import Cache

ROWS = (1, 3, 5, 9)
_CONTEXT = 16  # tokens that the measured passes look back on
_BUDGET_S = 1.2  # no second look at what took this long
_KEY = ("engine", "costs")

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
    table: CostTable = model.shared.get(_KEY) or _read(_file(model))
    missing = [key for key in wanted if key not in table.draft_s]
    if missing or not table.verify_s:
        table = _measure(model, efforts, missing, table)
        _write(_file(model), table)
    model.shared[_KEY] = table
    return table


def _measure(
    model: Model, efforts: Callable[[float], EffortSchedule | Efforts], missing: Sequence[_Draft], known: CostTable
) -> CostTable:
    """`known`, and what it lacks: the quicker of two passes each, for nothing but noise makes one slower.

    What compiles or packs something, and so takes seconds, is run once before.
    """
    runtime, vocabulary = model.runtime, model.config.vocab_size
    most = max(ROWS)
    tokens = [index * 997 % vocabulary for index in range(_CONTEXT + most)]
    cache = runtime.new_cache(min(_CONTEXT + most, model.config.max_context))
    context = max(0, cache.capacity - most)
    dense = EffortSchedule()
    forward_one(runtime, tokens[: context or 1], cache, effort=dense, logits="last")
    verify, draft = dict(known.verify_s), dict(known.draft_s)
    compiles = runtime.info.compiles
    start_s = time.perf_counter()
    for attempt in range(2):
        for rows in ROWS if not known.verify_s else ():
            if context + rows <= cache.capacity:
                check = partial(forward_one, runtime, tokens[:rows], cache, effort=dense)
                if not attempt and compiles:
                    _timed(check, cache, context)
                seconds = _timed(check, cache, context)
                verify[rows] = min(seconds, verify.get(rows, seconds))
        for key in missing:
            step = partial(forward_one, runtime, tokens[:1], cache, effort=efforts(key[2]), view=key[1] or "exact")
            if not attempt:
                _timed(step, cache, context)
            seconds = _timed(step, cache, context)
            draft[key] = min(seconds, draft.get(key, seconds))
        if time.perf_counter() - start_s > _BUDGET_S / 2:
            break
    return CostTable(verify_s=verify, draft_s=draft)


def _timed(run: Callable[[], object], cache: Cache, length: int) -> float:
    """Seconds of a pass behind `length` tokens, which the cache holds again afterwards."""
    cache.trim(min(length, cache.length))
    start_s = time.perf_counter()
    run()
    seconds = time.perf_counter() - start_s
    cache.trim(min(length, cache.length))
    return seconds


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
