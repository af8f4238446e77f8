"""What runtimes of a divided model compute, to be compared with one that has all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows, Runtime, Window
from specdec.runtimes.native.runtime import NativeRuntime
from specdec.runtimes.reference.runtime import ReferenceRuntime

IDS = [int(token) for token in np.random.default_rng(1).integers(0, 47, 24)]
MAKE: dict[str, Callable[..., Any]] = {
    "native": lambda store, **given: NativeRuntime(store, threads=1, **given),
    "reference": ReferenceRuntime,
}


def transcript(
    runtime: Runtime, *, views: tuple[tuple[str, float], ...] = (("exact", 1.0),), parts: bool = True
) -> list[NDArray[np.float32]]:
    """Logits of a prompt, and of batches with a tree, after cuts and forks of caches; with `parts`, also hidden
    states and a pass through the first layer alone."""
    found = []
    for view, effort in views:
        efforts = resolve_efforts(effort, runtime.config)
        first, second = runtime.new_cache(64), runtime.new_cache(64)
        found.append(runtime.forward([Rows(first, IDS[:9], efforts)], view=view)[0].logits)
        runtime.forward([Rows(second, IDS[3:8], efforts, logits="none")], view=view)
        tree = Rows(first, IDS[:5], efforts, parents=[-1, 0, 0, 1, 2])
        layers = 1 if parts and runtime.config.num_layers > 1 else None
        passes = runtime.forward([Rows(second, IDS[9:11], efforts, layers=layers), tree], view=view, states=parts)
        found += [part for one in passes for part in (one.logits, one.states) if part is not None]
        first.keep(9, [0, 2, 4])
        second.trim(5)
        fork = first.fork(10, 40)
        passes = runtime.forward(
            [Rows(first, [7], efforts), Rows(second, [8, 9], efforts, logits="last"), Rows(fork, [1, 2], efforts)],
            view=view,
        )
        found += [one.logits for one in passes]
        if runtime.info.narrows:
            long = runtime.new_cache(160)
            runtime.forward([Rows(long, (IDS * 150)[:150], efforts, logits="none")], view=view)
            found.append(runtime.forward([Rows(long, [4, 1], efforts, window=Window(10, 3))], view=view)[0].logits)
    return found
