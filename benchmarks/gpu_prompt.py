"""Prompts on the GPU: time to the first token in wide passes, beside steps of 16 rows, once both gave the same bits.

python benchmarks/gpu_prompt.py qwen2.5-coder-0.5b --rows 64 512 1800 --json results/gpu_prompt-DEVICE.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json
from gpu_common import device

import specdec
from specdec.engine.decode import PREFILL_CHUNK
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one

FULL = EffortSchedule(1.0)


def read(runtime: Any, ids: list[int]) -> tuple[np.ndarray, float]:
    """Logits of the last token, and seconds."""
    cache, start = runtime.new_cache(len(ids) + 1), time.perf_counter()
    for first in range(0, len(ids), PREFILL_CHUNK):
        last = first + PREFILL_CHUNK >= len(ids)
        part = ids[first : first + PREFILL_CHUNK]
        logits = forward_one(runtime, part, cache, effort=FULL, logits="last" if last else "none").logits
    return logits, time.perf_counter() - start


def in_steps(runtime: Any, run: Callable[[], Any]) -> Any:
    """What `run` gives when the runtime reads prompts in steps."""
    wide = runtime._wide
    kept, wide._prompts = wide._prompts, None
    try:
        return run()
    finally:
        wide._prompts = kept


def kernels(runtime: Any, ids: list[int]) -> dict[str, tuple[int, float]]:
    """Launches and milliseconds of each kernel when each is waited for, which adds some 10 us to every launch."""
    driver, found = runtime._wide._prompts._step.driver, dict[str, tuple[int, float]]()
    names = {function.value: name for name, (function, _, _) in runtime._wide._prompts._functions.items()}
    begin = driver.begin

    def timed(launch: Any) -> None:
        driver.wait()
        start = time.perf_counter()
        begin(launch)
        driver.wait()
        name = names[launch.given[0].value]
        key = f"{name} of {launch.grid[1]} blocks" if "multiply" in name else name
        count, total = found.get(key, (0, 0.0))
        found[key] = count + 1, total + 1e3 * (time.perf_counter() - start)

    driver.begin = timed
    try:
        read(runtime, ids)
    finally:
        del driver.begin
    return found


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="catalogue names, stores, GGUF files or Hugging Face folders")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256, 512, 1800], help="lengths of prompts")
    parser.add_argument("--repeat", type=int, default=7, help="times of each (default %(default)s)")
    parser.add_argument("--kernels", action="store_true", help="print the time of each kernel, too")
    add_json_option(parser)
    arguments = parser.parse_args()
    table: list[tuple[Any, ...]] = []
    for name in arguments.models:
        runtime: Any = specdec.load(name, runtime="mlx").runtime
        if runtime._wide._prompts is None:
            sys.exit(f"{name}: this runtime has no wide passes")
        longest = max(arguments.rows)
        ids = [int(token) for token in np.random.default_rng(0).integers(0, runtime.config.vocab_size, longest)]
        wide, steps = read(runtime, ids)[0], in_steps(runtime, lambda: read(runtime, ids)[0])  # noqa: B023
        if not np.array_equal(wide, steps):
            sys.exit(f"{name}: wide passes gave other logits than steps")
        for rows in arguments.rows:
            part = ids[:rows]
            taken = [read(runtime, part)[1] for _ in range(arguments.repeat)]
            stepped = in_steps(runtime, lambda: [read(runtime, part)[1] for _ in range(3)])  # noqa: B023
            middle, other = 1e3 * statistics.median(taken), 1e3 * statistics.median(stepped)
            table.append((name, rows, round(middle, 2), round(other, 2), round(other / middle, 1)))
        if arguments.kernels:
            for kernel, (count, total) in kernels(runtime, ids).items():
                print(f"{name}: {kernel}: {count} launches, {total:.2f} ms")
    print_machine()
    print_table(("model", "rows", "ms", "in steps", "times"), table)
    write_json(arguments.json, {"device": device(), "rows": table}, benchmark="gpu_prompt")


if __name__ == "__main__":
    main()
