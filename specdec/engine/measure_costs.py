"""What passes cost on this machine, measured: `measure`. What is done with it is in `costs`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from specdec.conforms import conforms
from specdec.engine.plausible import faults, made_plausible
from specdec.engine.policy import CostTable, DraftKey
from specdec.model.effort import Efforts, EffortSchedule, resolve_efforts
from specdec.runtimes.base import EXACT, Compiler, DraftHead, Planned, forward_one
from specdec.runtimes.timing import PassTimer, Timed

if TYPE_CHECKING:
    from specdec.model.loaded import Model
    from specdec.runtimes.base import Runtime

ROWS = (1, 3, 5, 9)
_CONTEXT = 16  # tokens that the measured passes look back on
_ROUNDS, _SETTLED_ROUNDS = 8, 4  # at most, and where all times agree
_BUDGET_S = 1.2  # no further round begins after that
_SETTLED = 0.05  # spread up to which times agree
_LOW = 0.15  # quantile of a pass's times that is its cost: other work on the machine only adds time
_DEVIATIONS = 1.5  # between the low ones and the upper quartile, about
_LEAST_SPREAD, _MOST_SPREAD = 0.08, 0.7  # rounds differ from measured passes by the least, whatever was measured
_QUIET = 0.8  # share of its threads' time that a pass gets on a machine that does nothing else
_CROWDED_SPREAD = 0.15  # least spread where more wants to run than there are cores


def measure(
    model: Model,
    efforts: Callable[[float], EffortSchedule | Efforts],
    drafts: Sequence[DraftKey],
    *,
    rows: Sequence[int] = ROWS,
    heads: Mapping[str, DraftHead | None] = MappingProxyType({}),
) -> CostTable:
    """Time exact passes and draft steps in turns, so that whatever slows the machine down slows all of them.

    Of each the low times count, and their spread says how far it can be trusted: that of the repetitions, or more where
    the passes did not get the processor for themselves. A table that cannot be (`plausible`) is measured for as long
    again, and then made plausible.

    Args:
        model: whose passes to time.
        efforts: schedule for a mean effort.
        drafts: draft steps to time, with a view of the model or None for its own weights.
        rows: of exact passes.
        heads: tokens that draft steps score, by drafter.
    """
    runtime, vocabulary = model.runtime, model.config.vocab_size
    most = max(rows)
    tokens = [index * 997 % vocabulary for index in range(_CONTEXT + most)]
    cache = runtime.new_cache(min(_CONTEXT + most, model.config.max_context))
    context = max(0, cache.capacity - most)
    counts = [count for count in rows if context + count <= cache.capacity]
    passes = [Timed(count, warm_up=False) for count in counts]
    passes += [Timed(1, efforts(effort), view or EXACT, head=heads.get(drafter)) for drafter, view, effort in drafts]
    if conforms(runtime, Compiler):
        runtime.compile([Planned(one.rows, resolve_efforts(one.effort, model.config), one.view) for one in passes])
    if context:
        forward_one(runtime, tokens[:context], cache, logits="last")
    timer = PassTimer(runtime, cache, tokens, passes)
    timer.warm_up()
    table = CostTable()
    for _ in range(2):
        quiet = _run(runtime, timer)
        table = _table(timer, counts, drafts, least_spread=_spread_of(quiet))
        if not faults(table):
            return table
    return made_plausible(table)


def _run(runtime: Runtime, timer: PassTimer) -> float:
    """Time rounds until they agree or the time is over; returns the share of its threads' time that the process got, 1
    if that is unknown."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    for done in range(1, _ROUNDS + 1):
        timer.round()
        if time.perf_counter() - start_s > _BUDGET_S:
            break
        if done >= _SETTLED_ROUNDS and all(_spread(seconds) <= _SETTLED for seconds in timer.seconds):
            break
    threads, wall_s = runtime.info.threads, time.perf_counter() - start_s
    if threads is None or runtime.info.device is not None or wall_s <= 0:
        return 1.0
    return min(1.0, (time.process_time() - start_cpu_s) / (wall_s * threads))


def _spread_of(quiet: float) -> float:
    """Least spread of a table, by how much else was running."""
    spread = _LEAST_SPREAD
    if quiet < _QUIET:
        spread = max(spread, 0.5 * math.log(1 / max(quiet, 0.01)))
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) + 1:
        spread = max(spread, _CROWDED_SPREAD)
    return min(spread, _MOST_SPREAD)


def _table(timer: PassTimer, counts: Sequence[int], drafts: Sequence[DraftKey], *, least_spread: float) -> CostTable:
    costs = [_low(seconds) for seconds in timer.seconds]
    spreads = [min(_MOST_SPREAD, max(least_spread, _spread(seconds))) for seconds in timer.seconds]
    count = len(counts)
    return CostTable(
        verify_s=dict(zip(counts, costs, strict=False)),
        draft_s=dict(zip(drafts, costs[count:], strict=True)),
        verify_spread=dict(zip(counts, spreads, strict=False)),
        draft_spread=dict(zip(drafts, spreads[count:], strict=True)),
    )


def _low(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(_LOW * len(seconds))]


def _spread(seconds: Sequence[float]) -> float:
    """Standard deviation of the logarithm of several times, from how far the upper quartile is above the low ones: rare
    stalls do not move it, frequent ones do. Of a single time nothing is known."""
    low = _low(seconds)
    if len(seconds) < 2 or low <= 0:
        return _CROWDED_SPREAD
    return math.log(sorted(seconds)[int(0.75 * len(seconds))] / low) / _DEVIATIONS
