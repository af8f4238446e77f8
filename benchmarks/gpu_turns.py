"""Turns that a launch drafts by itself, of a quantised model on the GPU: as graphs of kernels, and in one kernel.

Milliseconds of one of several turns, by the most rows of its tree, beside a plain step of a launch that goes ahead; the
ways take turns. Without a model: the 7B shape with random weights, 4 bits in groups of 64.

    python benchmarks/gpu_turns.py qwen2.5-coder-0.5b --json results/gpu_turns-DEVICE.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from threading import RLock
from typing import Any

import numpy as np
from common import add_json_option, print_table, write_json
from gpu_common import SHAPE_7B, device, mx
from gpu_quantised import random_models
from specdec.kernels.reference.recycle import TOP

import specdec
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Recycling, Rows
from specdec.runtimes.mlx.batch import share_of
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.runtimes.mlx.recycle import Turning
from specdec.runtimes.mlx.state import chain, show_choices, state_of
from specdec.runtimes.mlx.wide import WidePasses

WIDTHS, CONTEXT, PERIOD, STEPS, TURNS = (4, 8, 12, 16), 200, 24, 16, 8
GRAPHS, KERNEL = "graphs", "one kernel"


class Measured:
    """Turns over a text that repeats itself now and then.

    Args:
        transformer: of the model.
        wide: its wide passes.
    """

    def __init__(self, transformer: Transformer, wide: WidePasses) -> None:
        self.transformer, self.config = transformer, transformer.config
        self.cache = transformer.new_cache(CONTEXT + (1 + TURNS) * 16, RLock())
        self.cache.reserve(self.cache.capacity)
        self.cache.advance(CONTEXT - 1)
        self.text = [index % PERIOD * 997 % self.config.vocab_size for index in range(CONTEXT)]
        kinds = {GRAPHS: wide.turns, KERNEL: None}
        self.ways = {
            way: Turning(mx, transformer, "quant", lambda _mode, _efforts: 0, kind) for way, kind in kinds.items()
        }
        # Every token has successors, so that all trees are full.
        tokens = np.arange(self.config.vocab_size, dtype=np.int32)
        successors = np.random.default_rng(0).integers(0, self.config.vocab_size, (len(tokens), TOP), np.int32)
        for turning in self.ways.values():
            turning.recycler.know(tokens, successors)

    def plain(self) -> float:
        """Seconds of a plain step."""
        whole = self.transformer.whole
        assert whole is not None
        state = state_of([chain(self.text[-1:], CONTEXT - 1, wanted=1)], [self.cache.positions])
        show_choices(state, ahead=STEPS - 1)
        start = time.perf_counter()
        self.transformer.launch(Kind("quant", False, 1, 0, 1), state, [self.cache], [])
        whole.choices(1, STEPS - 1)
        return (time.perf_counter() - start) / STEPS

    def turn(self, way: str, width: int) -> tuple[float, float]:
        """Seconds of a turn, and its rows."""
        efforts, limit = resolve_efforts(1.0, self.config), self.cache.capacity
        asked = Recycling(list(self.text), width, limit)
        rows = Rows(self.cache, self.text[-1:], efforts, logits="choices", ahead=TURNS - 1, recycling=asked)
        share = share_of(0, rows, self.cache, self.text[-1:], "quant", selects=False)
        start = time.perf_counter()
        found = self.ways[way].run(rows, share)
        taken = (time.perf_counter() - start) / len(found.turns)
        self.cache.trim(CONTEXT - 1)
        return taken, statistics.fmean(1 + len(turn.tokens) for turn in found.turns)

    def cases(self) -> list[tuple[str, int]]:
        """Ways and widths that there are."""
        return [
            (way, width)
            for width in WIDTHS
            for way, turning in self.ways.items()
            if width <= turning.most_rows and (way == KERNEL or turning.has_graphs(width))
        ]


def measured(name: str | None) -> Measured:
    """Of a model, or of the 7B shape."""
    if name is not None:
        runtime: Any = specdec.load(name, runtime="mlx").runtime
        return Measured(runtime._transformer, runtime._wide)
    transformer, _ = random_models(SHAPE_7B, 4)
    return Measured(transformer, WidePasses(mx, transformer, RLock(), weight_bytes=lambda *_: 0))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="quantised: a catalogue name, a store or a GGUF file")
    parser.add_argument("--repeat", type=int, default=9, help="rounds over all ways (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    one = measured(arguments.model)
    taken, rows_of = dict[tuple[str, int], list[float]](), dict[tuple[str, int], float]()
    for number in range(arguments.repeat + 1):
        for case in (("plain step", 1), *one.cases()):
            way, width = case
            seconds, rows_of[case] = (one.plain(), 1.0) if width == 1 else one.turn(way, width)
            if number:
                taken.setdefault(case, []).append(1e3 * seconds)
    base = statistics.median(taken["plain step", 1])
    rows = []
    for (way, width), each in sorted(taken.items(), key=lambda item: item[0][1]):
        middle = statistics.median(each)
        rows.append((way, width, rows_of[way, width], middle, (max(each) - min(each)) / middle, middle / base))
    print(f"{device()}, {arguments.model or 'the 7B shape, 4 bits'}, {CONTEXT} tokens of history")
    header = ("way", "most rows", "rows", "ms", "spread", "of a plain step")
    print_table(header, rows)
    results = {"steps": [dict(zip(header, row, strict=True)) for row in rows], "context": CONTEXT, **device()}
    write_json(arguments.json, results, benchmark="gpu_turns")


if __name__ == "__main__":
    main()
