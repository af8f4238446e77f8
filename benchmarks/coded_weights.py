"""bfloat16 weights in 12 bits beside the same weights in plain lines of 16 bits, and beside another store.

Passes of the native runtime, alternating in one run: time by rows, memory of the weights, time to load. Logits are
compared bit for bit first. MODEL needs bfloat16 values, such as `specdec convert ... --to bf16` writes.

    python benchmarks/coded_weights.py model-bf16.store --threads 2
    python benchmarks/coded_weights.py model-bf16.store --beside model-f16.store
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json

import specdec
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.native.runtime import NativeRuntime, native_module

FULL = EffortSchedule(1.0)
CONTEXT, ROWS = 64, (1, 2, 5, 9, 16)


def loaded(name: str, threads: int | None) -> tuple[NativeRuntime, float]:
    """A runtime, and the seconds that loading it took."""
    start = time.perf_counter()
    runtime: Any = specdec.load(name, runtime="native", threads=threads).runtime
    return runtime, time.perf_counter() - start


def check(runtimes: dict[str, NativeRuntime], tokens: list[int]) -> None:
    """Refuse to time weights in 12 bits that give other logits than the same weights in 16."""
    found = []
    for name in ("12 bits", "16 bits"):
        runtime = runtimes[name]
        found.append(forward_one(runtime, tokens[:9], runtime.new_cache(9), effort=FULL).logits)
    if not np.array_equal(*found):
        sys.exit("logits of 12 bits differ from those of 16: nothing was timed")


def measure(runtimes: dict[str, NativeRuntime], tokens: list[int], repeat: int) -> dict[tuple[str, int], list[float]]:
    """Seconds of every pass, all of them once a round."""
    caches = {name: runtime.new_cache(CONTEXT + max(ROWS)) for name, runtime in runtimes.items()}
    for name, runtime in runtimes.items():
        forward_one(runtime, tokens[:CONTEXT], caches[name], effort=FULL, logits="last")
    times: dict[tuple[str, int], list[float]] = {(name, rows): [] for rows in ROWS for name in runtimes}
    for number in range(repeat + 1):
        for (name, rows), taken in times.items():
            start = time.perf_counter()
            forward_one(runtimes[name], tokens[:rows], caches[name], effort=FULL)
            if number:  # the first round warms up
                taken.append(time.perf_counter() - start)
            caches[name].trim(CONTEXT)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a store of bfloat16 values")
    parser.add_argument("--beside", metavar="STORE", help="another store of the same model, such as in float16")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeat", type=int, default=15, help="rounds, all cases alternating (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    runtimes, seconds = {}, {}
    for name, model in {"12 bits": arguments.model, "16 bits": arguments.model, "other": arguments.beside}.items():
        if model is not None:
            runtimes[name], seconds[name] = loaded(model, arguments.threads)
    if not runtimes["12 bits"]._model.coded_bytes:
        sys.exit(f"{arguments.model} holds no bfloat16 values that fit 12 bits: convert it with --to bf16")
    memory = {name: runtime.memory["exact"] for name, runtime in runtimes.items()}
    runtimes["16 bits"].prepare("bucket")  # needs plain lines
    memory["16 bits"] = runtimes["16 bits"].memory["exact"]
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, runtimes["12 bits"].config.vocab_size, CONTEXT)]
    check(runtimes, tokens)
    times = measure(runtimes, tokens, arguments.repeat)
    reading = (1 << 28) / native_module().seconds_to_read(runtimes["12 bits"].threads, 1 << 28) / 1e9
    report(times, {"memory_bytes": memory, "load_s": seconds, "read_gb_s": reading}, arguments)


def report(times: dict[tuple[str, int], list[float]], facts: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the tables and write the JSON file."""
    print_machine()
    rows = []
    for (name, count), taken in times.items():
        plain = times["16 bits", count]
        speed = statistics.median(b / a for a, b in zip(taken, plain, strict=True))
        rows.append((name, count, statistics.median(taken) * 1e3, speed))
    header = ("weights", "rows", "ms", "speed over 16 bits")
    print_table(header, rows)
    print_table(
        ("weights", "bytes", "seconds to load"),
        [(name, size, facts["load_s"][name]) for name, size in facts["memory_bytes"].items()],
    )
    print(f"read {facts['read_gb_s']:.1f} GB/s")
    results = {"passes": [dict(zip(header, row, strict=True)) for row in rows], **facts}
    write_json(arguments.json, results, benchmark="coded_weights")


if __name__ == "__main__":
    main()
