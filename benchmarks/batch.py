"""Tokens per second of several sequences that decode in lockstep, relative to one sequence.

Every case decodes plainly (greedy, effort 1) on the native runtime, one row a sequence and pass, after a prompt of its
own; cases alternate in every round, and the ratio is the median over rounds. Before anything is timed, the tokens of
the smaller batches are compared with those of the largest one.

    python benchmarks/batch.py STORE [STORE ...] --threads 2 --json benchmarks/results/batch.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows, forward_one
from specdec.runtimes.native.runtime import NativeRuntime
from specdec.store import Store

COUNTS, PROMPT, STEPS = (1, 5, 16), 40, 12


class Lockstep:
    """Sequences that take one token a pass, each from the end of its own prompt."""

    def __init__(self, runtime: NativeRuntime, count: int) -> None:
        self.runtime, self.efforts = runtime, resolve_efforts(1.0, runtime.config)
        self.caches = [runtime.new_cache(PROMPT + STEPS) for _ in range(count)]
        self.first = []
        for number, kv in enumerate(self.caches):
            prompt = np.random.default_rng(number).integers(0, runtime.config.vocab_size, PROMPT).tolist()
            self.first.append(int(forward_one(runtime, prompt, kv, logits="last").logits[0].argmax()))

    def run(self) -> tuple[list[list[int]], float]:
        """The tokens of every sequence, and seconds."""
        for kv in self.caches:
            kv.trim(PROMPT)
        tokens, texts = list(self.first), [[token] for token in self.first]
        start = time.perf_counter()
        for _ in range(STEPS):
            batch = [Rows(kv, [token], self.efforts) for kv, token in zip(self.caches, tokens, strict=True)]
            tokens = [int(one.logits[0].argmax()) for one in self.runtime.forward(batch)]
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
        return texts, time.perf_counter() - start


def measure(path: Path, threads: int | None, rounds: int) -> dict[str, Any]:
    """Tokens a second by number of sequences, and their ratio to one sequence's."""
    runtime = NativeRuntime(Store.open(path, verify=False), threads=threads)
    cases = {count: Lockstep(runtime, count) for count in COUNTS}
    together, alone = cases[COUNTS[-1]].run()[0], cases[COUNTS[0]].run()[0]
    if any(case.run()[0] != together[:count] for count, case in cases.items()) or alone != together[:1]:
        sys.exit("tokens of a batch differ from the same sequences alone: nothing was timed")
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count, case in cases.items():
            times[count].append(case.run()[1])
    ratios = {count: [count * one / own for one, own in zip(times[1], times[count], strict=True)] for count in COUNTS}
    return {
        "store": path.name,
        "threads": runtime.threads,
        "tok_per_s": {count: count * STEPS / statistics.median(times[count]) for count in COUNTS},
        "ratio": {count: statistics.median(ratios[count]) for count in COUNTS},
        "ratio_range": {count: [min(ratios[count]), max(ratios[count])] for count in COUNTS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every store and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="converted models")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: all cores)")
    parser.add_argument("--rounds", type=int, default=9, help="times that every case runs (default: 9)")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    print_machine()
    results = [measure(path, options.threads, options.rounds) for path in options.stores]
    header = ["model", *(f"{count} tok/s" for count in COUNTS), *(f"ratio at {count}" for count in COUNTS[1:])]
    print_table(
        header,
        [[one["store"], *one["tok_per_s"].values(), *list(one["ratio"].values())[1:]] for one in results],
    )
    write_json(options.json, results, benchmark="batch")


if __name__ == "__main__":
    main()
