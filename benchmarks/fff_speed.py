"""A fast feedforward layer against the dense layer of as many neurons, on the CPU: 768 -> 4095 -> 768 by default.

The tree is that of arXiv 2311.10770: its 4,095 nodes are the neurons, and a row uses 12 of them. Contenders take turns
in every round; each call has other rows, and copies of the weights take turns, so that none finds more in the cache
than in a model of many layers (`--warm`: one copy and one set of rows). The dense layers have ReLU, which costs them
next to nothing; the tree has the paper's GELU. NumPy's BLAS has one thread, unless OPENBLAS_NUM_THREADS says otherwise.
Results are compared with float64 before anything is timed.

    python benchmarks/fff_speed.py --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from common import add_json_option, print_machine, print_table, write_json
from cpu_kernels import RandomSource
from fff_weights_random import tree_weights
from specdec.kernels.reference import fff as reference

from specdec.fff import HardFeedforward
from specdec.runtimes.native.runtime import NativeRuntime
from specdec.store import Store, convert

Call = Callable[[int, np.ndarray], Any]
LEAST_S = 0.02  # of a measurement


def trees(width: int, depth: int, dtype: Any, copies: int, threads: int) -> Call:
    """The layer in the native kernels."""
    layers = [HardFeedforward(tree_weights(width, depth, dtype, n), threads=threads) for n in range(copies)]
    x = np.random.default_rng(1).standard_normal((64, width), np.float32)
    arrays = layers[0].weights.arrays()
    certain = (np.abs(reference.scores(x.astype(np.float64), 0, arrays)) > 1e-5).all(axis=1)
    wanted = reference.forward(x, arrays, "gelu")
    if not certain.any() or np.abs(layers[0](x) - wanted)[certain].max() > 1e-4:
        sys.exit("the tree's result is wrong: nothing was timed")
    return lambda turn, rows: layers[turn % copies](rows)


def native_dense(folder: Path, width: int, neurons: int, copies: int, threads: int) -> Call:
    """Two products of float16 matrices in the native kernels, as the engine multiplies."""
    source = RandomSource(neurons, width, copies * 3 * 2 * neurons * width)
    store = Store.open(convert(source, folder / "store"), verify=False)
    runtime = NativeRuntime(store, threads=threads)
    index = {name: number for number, name in enumerate(store.config.matrices())}
    model = runtime._model

    def call(turn: int, rows: np.ndarray) -> np.ndarray:
        layer = f"layers.{turn % copies}.mlp."
        hidden, y = np.empty((len(rows), neurons), np.float32), np.empty((len(rows), width), np.float32)
        model.multiply(index[layer + "up"], rows, None, 1.0, hidden)
        np.maximum(hidden, 0, out=hidden)
        model.multiply(index[layer + "down"], hidden, None, 1.0, y)
        return y

    return call


def numpy_dense(width: int, neurons: int, copies: int) -> Call:
    """Two products of float32 matrices in NumPy's BLAS."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.standard_normal((neurons, width), np.float32), rng.standard_normal((width, neurons), np.float32))
        for _ in range(copies)
    ]
    return lambda turn, rows: np.maximum(rows @ pairs[turn % copies][0].T, 0) @ pairs[turn % copies][1].T


def mlx_dense(width: int, neurons: int, copies: int) -> Call:
    """Two products of float32 matrices in MLX on the CPU."""
    import mlx.core as mx

    pairs = [(mx.random.normal((neurons, width)), mx.random.normal((width, neurons))) for _ in range(copies)]
    mx.eval(pairs)

    def call(turn: int, rows: np.ndarray) -> Any:
        first, second = pairs[turn % copies]
        y = mx.maximum(mx.array(rows) @ first.T, 0) @ second.T
        mx.eval(y)
        return y

    return call


def seconds(call: Call, rows: np.ndarray, count: int, warm: bool) -> float:
    """Seconds of one call, of as many calls as fill the least time."""
    sets, turn = len(rows) // count, 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < LEAST_S:
        first = 0 if warm else turn % sets * count
        call(0 if warm else turn, rows[first : first + count])
        turn += 1
    return passed / turn


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=11, help="choices; a row uses one neuron more (default: 11)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--warm", action="store_true", help="one copy of the weights, and the same rows in every call")
    add_json_option(parser)
    args = parser.parse_args()
    neurons, copies = 2 ** (args.depth + 1) - 1, 1 if args.warm else args.copies
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            "tree float32": trees(args.width, args.depth, np.float32, copies, args.threads),
            "tree float16": trees(args.width, args.depth, np.float16, copies, args.threads),
            "dense float16, native": native_dense(Path(folder), args.width, neurons, copies, args.threads),
            "dense float32, NumPy": numpy_dense(args.width, neurons, copies),
            "dense float32, MLX": mlx_dense(args.width, neurons, copies),
        }
        results = [one for rows in args.rows for one in measure(calls, rows, args)]
    print_machine()
    blas = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    print(f"{args.width} -> {neurons} -> {args.width}, {args.threads} threads, {blas} of BLAS, warm: {args.warm}")
    header = ("rows", "layer", "us", "spread", "tree float32 is faster", "tree float16 is faster")
    print_table(header, [tuple(one.values()) for one in results])
    write_json(args.json, results, benchmark="fff_speed")


def measure(calls: dict[str, Call], count: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All contenders in turn, in every round; ratios are medians of the rounds' own."""
    x = np.random.default_rng(2).standard_normal((max(count * 4, 2048), args.width), np.float32)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(args.repeat + 1):
        for name, call in calls.items():
            taken = seconds(call, x, count, args.warm)
            if turn:
                times[name].append(taken)

    def faster(name: str, tree: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[tree], strict=True))

    results = []
    for name, taken in times.items():
        middle = statistics.median(taken)
        results.append({
            "rows": count, "layer": name, "us": middle * 1e6, "spread": (max(taken) - min(taken)) / middle,
            "over_float32": faster(name, "tree float32"), "over_float16": faster(name, "tree float16"),
        })  # fmt: skip
    return results


if __name__ == "__main__":
    main()
