"""Models that are loaded in part, on the processor: memory, and steps in units of the whole model's single row.

python benchmarks/load_share.py smollm2-135m-dithered --share 0.75 0.5 0.26
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json

import specdec
from specdec.runtimes.base import forward_one
from specdec.runtimes.timing import PassTimer, Timed

CONTEXT, ROWS = 200, (1, 5, 16)


def measure(runtimes: dict[float, Any], repeat: int) -> dict[tuple[float, int], list[float]]:
    """Seconds of a step by share and rows, all of them once a round, after a round of warm-up."""
    vocabulary = next(iter(runtimes.values())).config.vocab_size
    tokens = [int(token) for token in np.random.default_rng(0).integers(0, vocabulary, CONTEXT)]
    timers = {}
    for share, runtime in runtimes.items():
        cache = runtime.new_cache(CONTEXT + max(ROWS))
        forward_one(runtime, tokens, cache, logits="last")
        timers[share] = PassTimer(runtime, cache, tokens, [Timed(rows) for rows in ROWS])
        timers[share].warm_up()
    for _ in range(repeat):
        for timer in timers.values():
            timer.round()
    return {
        (share, rows): taken for share, timer in timers.items() for rows, taken in zip(ROWS, timer.seconds, strict=True)
    }


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--share", type=float, nargs="+", default=[0.75, 0.5], help="shares (default 0.75 0.5)")
    parser.add_argument("--repeat", type=int, default=40, help="rounds, all cases alternating (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    models = {
        share: specdec.load(arguments.model, runtime="native", load_share=share) for share in (1.0, *arguments.share)
    }
    runtimes: dict[float, Any] = {share: model.runtime for share, model in models.items()}
    times = measure(runtimes, arguments.repeat)
    print_machine()
    memory, single = {share: runtime.memory["exact"] for share, runtime in runtimes.items()}, times[1.0, 1]
    rows = []
    for (share, count), taken in times.items():
        ratios = [a / b for a, b in zip(taken, single, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append((share, models[share].store.loaded_share, memory[share] / memory[1.0], count, middle, high - low))
    header = ("share", "loaded", "memory, of the whole", "rows", "single rows of the whole", "between quartiles")
    print_table(header, rows)
    write_json(arguments.json, {"rows": [dict(zip(header, row, strict=True)) for row in rows]}, benchmark="load_share")


if __name__ == "__main__":
    main()
