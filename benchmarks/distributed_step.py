"""A model on several ranks beside one: logits and tokens compared bit for bit, times of steps, gathers, memory.

Every number of ranks is started by `specdec launch`; one rank runs the same kernels as several.

    python benchmarks/distributed_step.py MODEL --ranks 1,2 --runtime native --json results/distributed.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import add_json_option, print_table, write_json
from launched import launched

PROMPT = "Write a Python function that returns the n-th Fibonacci number, and explain in a sentence how it works."
GATHERED = (64, 576, 4096, 16384)  # values that each rank brings
STEP_ROWS = (1, 5)


def main() -> None:
    """Run every number of ranks, compare, print."""
    arguments = _arguments()
    if arguments.inside:
        Path(arguments.inside).write_text(json.dumps(measure(arguments)), encoding="utf-8")
        return
    found = {ranks: _launched(arguments, ranks) for ranks in arguments.ranks}
    first = next(iter(found.values()))
    rows = []
    for ranks, one in found.items():
        equal = {name: one["equal"][name] == first["equal"][name] for name in first["equal"]}
        wrong = [name for name, same in equal.items() if not same]
        for name, (middle, spread) in one["steps_s"].items():
            base = first["steps_s"][name][0]
            memory = one["weights_mb"], one["rss_mb"]
            rows.append((ranks, name, middle * 1e3, spread, middle / base, *memory, ", ".join(wrong) or "all"))
    print_table(("ranks", "step", "ms", "spread", "of one rank", "weights, MB", "process, MB", "equal bits"), rows)
    for ranks, one in found.items():
        times = ", ".join(f"{int(size) * 4} bytes {1e6 * took:.0f} us" for size, took in one["gathers_s"].items())
        speeds = ", ".join(f"{name} {speed:.1f} tok/s" for name, speed in one["tokens_per_s"].items())
        print(f"{ranks} ranks, {one['backend']}: a gather of {times}; {speeds}")
    write_json(arguments.json, {str(ranks): one for ranks, one in found.items()}, benchmark="distributed_step")
    if any(one["equal"] != first["equal"] for one in found.values()):
        sys.exit("ranks differ from one another: see the last column")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--runtime", default="native")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--backend", help="of MLX (default: what specdec launch takes)")
    parser.add_argument("--split", default="outputs")
    parser.add_argument("--repeat", type=int, default=20, help="steps of each kind (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default %(default)s)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def _launched(arguments: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """What rank 0 of so many has measured."""
    options = ["--split", arguments.split, *(["--backend", arguments.backend] if arguments.backend else [])]
    words = [arguments.model, "--runtime", arguments.runtime, "--repeat", str(arguments.repeat)]
    words += ["--tokens", str(arguments.tokens)]
    words += ["--threads", str(arguments.threads)] if arguments.threads else []
    return launched(__file__, words, ranks=ranks, options=options)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything of one number of ranks; ranks other than 0 never return from loading."""
    import specdec
    from specdec.distributed.opening import the_leader
    from specdec.model.effort import resolve_efforts
    from specdec.runtimes.base import Rows

    model = specdec.load(arguments.model, runtime=arguments.runtime, threads=arguments.threads)
    leader = the_leader()
    group = leader.group
    gathers = {size: leader.gather_s(size, arguments.repeat * 10) for size in GATHERED}
    assert model.tokenizer is not None
    runtime, full = model.runtime, resolve_efforts(1.0, model.config)
    ids = model.tokenizer.encode(PROMPT)[:24]
    view, effort = runtime.info.auto_draft
    equal = {"prompt": _digest(model.logits(ids))}
    cache = runtime.new_cache(256)
    runtime.forward([Rows(cache, ids, full, logits="none")])

    def step(rows: int, name: str, share: float) -> np.ndarray:
        efforts = resolve_efforts(share, model.config)
        found = runtime.forward([Rows(cache, ids[:rows], efforts)], view=name)[0].logits
        cache.trim(len(ids))
        return found

    steps = {}
    cases = [(f"{rows} rows" if rows > 1 else "1 row", rows, "exact", 1.0) for rows in STEP_ROWS]
    cases.append((f"{view} at {effort:g}", 1, view, float(effort)))
    for name, rows, kind, share in cases:
        equal[name] = _digest(step(rows, kind, share))
        steps[name] = _seconds(lambda r=rows, k=kind, s=share: step(r, k, s), arguments.repeat)
    plain = specdec.generate(model, PROMPT, temperature=0, max_tokens=arguments.tokens, speculate=False)
    drafted = specdec.generate(model, PROMPT, temperature=0, max_tokens=arguments.tokens)
    sampled = specdec.generate(model, PROMPT, temperature=0.8, seed=7, max_tokens=arguments.tokens)
    speeds = {}
    for name, speculate in (("plain", False), ("auto", True)):
        start = time.perf_counter()
        again = specdec.generate(model, PROMPT, temperature=0, max_tokens=arguments.tokens, speculate=speculate)
        speeds[name] = len(again.tokens) / (time.perf_counter() - start)
    if list(drafted.tokens) != list(plain.tokens):
        sys.exit("speculation changed the tokens")
    equal |= {"tokens": list(plain.tokens), "sampled": list(sampled.tokens)}
    return {
        "ranks": group.ranks,
        "backend": group.backend,
        "runtime": runtime.info.build,
        "gathers_s": gathers,
        "steps_s": steps,
        "equal": equal,
        "tokens_per_s": speeds,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1 << 10 if sys.platform != "darwin" else 1 << 20),
        "weights_mb": getattr(runtime, "memory", {}).get("exact", 0) / 1e6,
    }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _seconds(run: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """Median, and largest less smallest of it."""
    taken = []
    for turn in range(repeat + 2):
        start = time.perf_counter()
        run()
        if turn > 1:
            taken.append(time.perf_counter() - start)
    middle = statistics.median(taken)
    return middle, (max(taken) - min(taken)) / middle


if __name__ == "__main__":
    main()
