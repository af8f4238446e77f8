"""Passes over several sequences on the GPU: milliseconds by sequences and rows, as one kernel a step and one by one.

With choices the GPU chooses the tokens itself; what goes ahead counts by the turn, a token of every sequence. A launch
that drafts by itself counts by the turn as well, which verifies a tree of rows.

python benchmarks/gpu_batch.py smollm2-135m --json results/gpu_batch-DEVICE.json
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from common import add_json_option, print_table, write_json
from gpu_common import device

import specdec
from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.runtimes.base import Recycling, Rows, forward_one
from specdec.runtimes.mlx import runtime as mlx_runtime
from specdec.runtimes.mlx.device import find_gpu

CONTEXT, SEQUENCES, AHEAD = 200, 64, 15
TREE = [-1, 0, 1, 0, 3]


def ways_of(store: Any) -> dict[str, Any]:
    """The model's runtimes, by how a step runs."""
    gpu, made = find_gpu(), {}
    for way, used in (("one kernel", gpu), ("one by one", replace(gpu, driver=None))):
        with patch.object(mlx_runtime, "find_gpu", lambda used=used: used):
            made[way] = mlx_runtime.MlxRuntime(store)
    return made if made["one kernel"]._transformer.whole is not None else {"one by one": made["one by one"]}


def check(runtime: Any, caches: list[Any], efforts: Any) -> None:
    """Refuse to time passes whose rows depend on the other sequences."""
    batch = [Rows(cache, [number + 1], efforts) for number, cache in enumerate(caches)]
    together = runtime.forward(batch)
    for cache, rows, made in zip(caches, batch, together, strict=True):
        cache.trim(CONTEXT)
        alone = runtime.forward([rows])[0]
        cache.trim(CONTEXT)
        if not np.array_equal(alone.logits, made.logits):
            sys.exit("a sequence has other logits alone than in the batch: nothing was timed")


def milliseconds(runtime: Any, batch: list[Rows], repeat: int) -> tuple[float, float]:
    """Median and spread (from the first to the third quartile) of a turn of a pass, whose rows are then taken back."""
    took = []
    for _ in range(repeat + 5):  # the first compile
        start = time.perf_counter()
        found = runtime.forward(batch)[0]
        turns = 1 + len(found.choices) - len(batch[0].tokens) if found.choices else len(found.turns or [0])
        took.append(1e3 * (time.perf_counter() - start) / turns)
        for rows in batch:
            rows.cache.trim(CONTEXT)
    low, middle, high = np.quantile(took[5:], (0.25, 0.5, 0.75))
    return float(middle), float(high - low)


def passes_of(runtime: Any, caches: list[Any], efforts: Any) -> dict[str, list[Rows]]:
    """What to time, by label; all caches hold CONTEXT tokens."""
    passes = {f"{n} sequences, a row each": [Rows(c, [1], efforts) for c in caches[:n]] for n in (1, 4, 8, 16)}
    for ahead in (0, AHEAD) if runtime.info.chooses else ():
        for n in (1, 4, 8, 16, 32, 64):
            chosen = [Rows(c, [1], efforts, logits="choices", ahead=ahead) for c in caches[:n]]
            passes[f"{n} sequences, choices, {ahead} ahead"] = chosen
    text = [*range(1, CONTEXT + 1), 1]
    for most in (4, 8, 16):
        if most <= runtime.info.recycles:
            wish = Recycling(text, most, 2 * CONTEXT - 2 * most)
            passes[f"turns of up to {most} rows"] = [
                Rows(caches[0], [1], efforts, logits="choices", ahead=AHEAD, recycling=wish)
            ]
    passes["a chain of 5"] = [Rows(caches[0], [1] * 5, efforts)]
    passes["a tree of 5"] = [Rows(caches[0], [1] * 5, efforts, TREE)]
    return passes


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="catalogue names, stores, GGUF files or Hugging Face folders")
    parser.add_argument("--repeat", type=int, default=50, help="passes of each kind (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    for name in arguments.models:
        model = specdec.load(name, runtime="mlx")
        for way, runtime in ways_of(model.store).items():
            efforts, caches = resolve_efforts(EffortSchedule(), runtime.config), []
            for _ in range(SEQUENCES):
                caches.append(runtime.new_cache(2 * CONTEXT))
                forward_one(runtime, range(1, CONTEXT + 1), caches[-1], logits="none")
            check(runtime, caches[:16], efforts)
            base = 0.0
            for label, batch in passes_of(runtime, caches, efforts).items():
                middle, spread = milliseconds(runtime, batch, arguments.repeat)
                base = base or middle
                rows.append((name.rsplit("/", 1)[-1], way, label, middle, spread, middle / base))
    print(device())
    header = ("model", "way", "pass", "ms", "spread", "of one row")
    print_table(header, rows)
    write_json(arguments.json, {"rows": [dict(zip(header, row, strict=True)) for row in rows], **device()},
               benchmark="gpu_batch")  # fmt: skip


if __name__ == "__main__":
    main()
