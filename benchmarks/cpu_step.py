"""Steps of the native runtime in units of its own dense step: verification by rows, drafts by view and effort.

Also prefill and plain decoding, and with --llama those of llama.cpp on the same weights, alternating in the same run.

    python benchmarks/cpu_step.py smollm2-135m
    python benchmarks/cpu_step.py STORE --llama .../llama-bench --gguf model-f16.gguf
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json

import specdec
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.native.runtime import NativeRuntime, native_module
from specdec.runtimes.timing import PassTimer, Timed

FULL = EffortSchedule(1.0)
CONTEXT, PREFILL = 200, 512


def check(runtime: NativeRuntime, tokens: list[int]) -> None:
    """Refuse to time a runtime without row invariance."""
    together, alone = runtime.new_cache(16), runtime.new_cache(16)
    rows = forward_one(runtime, tokens[:9], together, effort=FULL).logits
    single = [forward_one(runtime, [token], alone, effort=FULL).logits[0] for token in tokens[:9]]
    if not np.array_equal(rows, np.array(single)):
        sys.exit("rows of a batch differ from the same rows alone: nothing was timed")


def all_cases(runtime: NativeRuntime, views: list[str] | None) -> list[tuple[str, float, int]]:
    """(view, effort, rows); the first is the dense step."""
    cases = [("exact", 1.0, rows) for rows in (1, 2, 3, 4, 5, 6, 9, 16)]
    cases += [("exact", effort, 1) for effort in (0.6, 0.5, 0.25)] + [("exact", 0.6, 5)]
    efforts = {"int4": (1.0, 0.7, 0.5, 0.35), "own": (0.5, 0.35), "nested": (1.0, 0.7, 0.5)}
    for view in runtime.views() if views is None else views:
        runtime.prepare(view)
        cases += [(view, effort, 1) for effort in efforts.get(view, (0.25, 0.15))]
    return cases


def measure(
    runtime: NativeRuntime, tokens: list[int], repeat: int, views: list[str] | None
) -> tuple[dict[Any, list[float]], list[float]]:
    """Times of every case, all of them once a round; and the machine's reading speed in each round, GB/s."""
    cache = runtime.new_cache(1024)
    forward_one(runtime, tokens[:CONTEXT], cache, effort=FULL, logits="last")
    cases, reading = all_cases(runtime, views), []
    timer = PassTimer(runtime, cache, tokens, [Timed(rows, effort, view) for view, effort, rows in cases])
    timer.warm_up()
    for _ in range(repeat):
        reading.append((1 << 28) / native_module().seconds_to_read(runtime.threads, 1 << 28) / 1e9)
        timer.round()
    return dict(zip(cases, timer.seconds, strict=True)), reading


def own_speed(runtime: NativeRuntime, tokens: list[int]) -> tuple[float, float]:
    """Tokens per second of prefill (512) and of plain decoding (64 after an empty context), as llama-bench counts."""
    cache = runtime.new_cache(1024)
    start = time.perf_counter()
    forward_one(runtime, tokens[:PREFILL], cache, effort=FULL, logits="last")
    prefill = PREFILL / (time.perf_counter() - start)
    cache.trim(0)
    start = time.perf_counter()
    for token in tokens[:64]:
        forward_one(runtime, [token], cache, effort=FULL)
    return prefill, 64 / (time.perf_counter() - start)


def llama_speed(program: str, gguf: str, threads: int) -> tuple[float, float]:
    """The same two numbers from llama-bench."""
    command = [program, "-m", gguf, "-t", str(threads), "-p", str(PREFILL), "-n", "64", "-r", "1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {bool(row["n_prompt"]): float(row["avg_ts"]) for row in json.loads(done.stdout)}
    return found[True], found[False]


def compare(runtime: NativeRuntime, tokens: list[int], arguments: argparse.Namespace) -> dict[str, float]:
    """Own and llama.cpp's speed, alternating; ratios are medians of the rounds' own."""
    own, other = [], []
    for _ in range(arguments.rounds):
        own.append(own_speed(runtime, tokens))
        if arguments.llama:
            other.append(llama_speed(arguments.llama, arguments.gguf, runtime.threads))
    found = {
        "prefill_tok_per_s": statistics.median(p for p, _ in own),
        "plain_tok_per_s": statistics.median(d for _, d in own),
    }
    if other:
        found |= {
            "llama_prefill_tok_per_s": statistics.median(p for p, _ in other),
            "llama_plain_tok_per_s": statistics.median(d for _, d in other),
            "prefill_ratio": statistics.median(a[0] / b[0] for a, b in zip(own, other, strict=True)),
            "plain_ratio": statistics.median(a[1] / b[1] for a, b in zip(own, other, strict=True)),
        }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--views", nargs="*", metavar="VIEW", help="draft views to time (default all)")
    parser.add_argument("--repeat", type=int, default=15, help="rounds, all cases alternating (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of prefill and plain decoding (default %(default)s)"
    )
    parser.add_argument("--llama", metavar="PROGRAM", help="llama-bench of llama.cpp, to compare with")
    parser.add_argument(
        "--gguf",
        metavar="FILE",
        help="the same weights (F16, or the file that a store keeps the blocks of), for --llama",
    )
    add_json_option(parser)
    arguments = parser.parse_args()
    if bool(arguments.llama) != bool(arguments.gguf):
        parser.error("--llama and --gguf go together")
    model = specdec.load(arguments.model, runtime="native", threads=arguments.threads)
    runtime: Any = model.runtime
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, runtime.config.vocab_size, PREFILL)]
    check(runtime, tokens)
    speed = compare(runtime, tokens, arguments)
    times, reading = measure(runtime, tokens, arguments.repeat, arguments.views)
    report(runtime, times, reading, speed, arguments)


def report(
    runtime: Any, times: dict[Any, list[float]], reading: list[float], speed: dict[str, float], arguments: Any
) -> None:
    """Print the tables and write the JSON file."""
    print_machine()
    print(f"{arguments.model}, {runtime.isa}, {runtime.threads} threads, context {CONTEXT}")
    print(f"median of {arguments.repeat} rounds after one of warm-up; read {statistics.median(reading):.1f} GB/s")
    dense, rows = times["exact", 1.0, 1], []
    for (view, effort, count), taken in times.items():
        middle = statistics.median(taken)
        ratio = statistics.median(a / b for a, b in zip(taken, dense, strict=True))
        rows.append((view, effort, count, middle * 1e3, (max(taken) - min(taken)) / middle, ratio))
    header = ("view", "effort", "rows", "ms", "spread", "dense steps")
    print_table(header, rows)
    print_table(("speed", "value"), list(speed.items()))
    memory = runtime.memory
    print_table(("memory", "bytes", "of the exact weights"), [(k, v, v / memory["exact"]) for k, v in memory.items()])
    results = {"steps": [dict(zip(header, row, strict=True)) for row in rows], "speed": speed, "memory": memory,
               "read_gb_s": statistics.median(reading), "isa": runtime.isa, "threads": runtime.threads}  # fmt: skip
    write_json(arguments.json, results, benchmark="cpu_step")


if __name__ == "__main__":
    main()
