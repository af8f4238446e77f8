"""A fast feedforward layer against the dense layer of as many neurons, on a GPU: 768 -> 4095 -> 768 by default.

The paper's setting (arXiv 2311.10770): GELU, a tree whose 4,095 nodes are its neurons, 12 of which a row uses. Both
layers run as a compiled chain of calls that wait for each other, as in a model; times are of one call. Each call of a
chain has weights of its own (`--copies`), so none finds them in the cache. Results are compared with float64.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from fff_weights_random import tree_weights
from gpu_common import device, mx, seconds
from mlx import nn
from specdec.kernels.reference import fff as reference

from specdec.fff.gpu import GpuTrees
from specdec.runtimes.mlx import kernels as mlx_kernels
from specdec.runtimes.mlx.kernels import KernelText

Call = Callable[[Any], Any]


def dense(width: int, neurons: int, dtype: Any, seed: int) -> Call:
    """GELU(x W1^T + b) W2 by MLX's matrix products."""
    key = mx.random.key(seed)
    first = (mx.random.normal((neurons, width), key=key) * width**-0.5).astype(dtype)
    second = (mx.random.normal((width, neurons), key=key) * neurons**-0.5).astype(dtype)
    bias = mx.zeros((neurons,), dtype)
    mx.eval(first, second, bias)
    return lambda x: nn.gelu(mx.addmm(bias, x, first.T)) @ second.T


def chain_s(calls: list[Call], x: Any, repeat: int) -> tuple[float, float]:
    """Seconds of one call, and the spread, in a chain of all calls, each of which takes the last one's result."""

    def run(y: Any) -> Any:
        for call in calls:
            y = call(y)
        return y

    compiled = mx.compile(run)
    taken, spread = seconds(lambda: compiled(x), repeat=repeat)
    return taken / len(calls), spread


def check(layer: GpuTrees, x: np.ndarray) -> float:
    """Largest difference from float64 of the rows whose choices are certain in float32."""
    arrays = layer.weights.arrays()
    scores = reference.scores(x.astype(np.float64), 0, arrays)
    certain = (np.abs(scores) > 1e-4).all(axis=1)
    found = np.array(layer(mx.array(x)))
    wanted = reference.forward(x, arrays, "gelu")
    several = np.array(layer(mx.array(x[:2])))
    assert np.array_equal(several, found[:2]), "a row depends on the others"
    return float(np.abs(found - wanted)[certain].max()) if certain.any() else float("nan")


def looped(text: KernelText, again: int, rows: int) -> KernelText:
    """A CUDA kernel whose block runs `again` times in one launch, each time on another of `rows` rows."""
    head, _, body = text.source.replace("row = blockIdx.y", "first_row = blockIdx.y", 1).partition(";\n")
    loop = f"for (int again = 0; again < {again}; ++again) {{ const int row = (first_row + again * 37) % {rows};"
    return replace(text, source=f"{head};\n{loop}\n{body}\n}}")


def alone_s(layer: GpuTrees, step: int, again: int = 2000, rows: int = 1024) -> dict[str, float]:
    """Seconds that each kernel takes for one row, launches left out; CUDA only.

    The weights come from the GPU's second-level cache, which holds the layer.
    """
    weights, warps, threads = layer.weights, 2**step - 1, 128
    x = mx.random.normal((rows, weights.inputs))
    leaves, active = layer.choose(x, step=step)
    mx.eval(leaves, active)
    original, made = mlx_kernels.build, dict[str, Any]()
    mlx_kernels.build = lambda one, backend, text: original(one, backend, looped(text, again, rows))
    try:
        layer._kernels.clear()
        made = {
            "choose": layer._kernel("fff_choose", step * 32 + warps),
            "combine": layer._kernel("fff_combine", threads),
        }
    finally:
        mlx_kernels.build = original
        layer._kernels.clear()
    blocks = -(-weights.outputs // threads)
    calls = {
        "choose": partial(
            made["choose"], inputs=[x, *layer._first], grid=(warps * 32, 1, 1), threadgroup=(warps * 32, 1, 1),
            output_shapes=[leaves.shape, active.shape], output_dtypes=[mx.int32, mx.float32],
        ),
        "combine": partial(
            made["combine"], inputs=[leaves, active, *layer._second], grid=(blocks * threads, 1, 1),
            threadgroup=(threads, 1, 1), output_shapes=[(rows, weights.outputs)], output_dtypes=[mx.float32],
        ),
    }  # fmt: skip
    return {name: seconds(call, repeat=5)[0] / again for name, call in calls.items()}


def main() -> None:
    """Print a table of microseconds, and how many times faster the tree is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=11, help="choices; a row uses one neuron more (default: 11)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256, 4096])
    parser.add_argument("--copies", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    neurons = 2 ** (args.depth + 1) - 1
    small = tree_weights(64, 5, np.float32, 3)
    x = np.random.default_rng(0).standard_normal((40, 64), np.float32)
    print(device(), f"largest difference from float64: {check(GpuTrees(small), x):.1e}", flush=True)
    results = []
    for name, dtype, kind in (("float16", np.float16, mx.float16), ("float32", np.float32, mx.float32)):
        trees = [GpuTrees(tree_weights(args.width, args.depth, dtype, n)) for n in range(args.copies)]
        plain = [dense(args.width, neurons, kind, n) for n in range(args.copies)]
        for step in (1, 2, 3, 4):
            alone = {kernel: f"{s * 1e6:.2f} us" for kernel, s in alone_s(trees[0], step).items()}
            print(name, f"one row, launches left out, {step} levels at once:", alone, flush=True)
        for rows in args.rows:
            x = mx.random.normal((rows, args.width)).astype(kind)
            plainly = mx.random.normal((rows, args.width))  # the kernels take and give float32
            record: dict[str, Any] = {"weights": name, "rows": rows}
            record["dense_s"], record["dense_spread"] = chain_s(plain, x, args.repeat)
            for step in (1, 2, 3, 4):
                calls: list[Call] = [lambda y, layer=layer, step=step: layer(y, step=step) for layer in trees]
                record[f"tree_step{step}_s"], record["spread"] = chain_s(calls, plainly, args.repeat)
            best = min(record[f"tree_step{step}_s"] for step in (1, 2, 3, 4))
            record["times"] = record["dense_s"] / best
            results.append(record)
            shown = {key: f"{value * 1e6:.1f} us" for key, value in record.items() if key.endswith("_s")}
            print(name, rows, shown, f"{record['times']:.2f}x", flush=True)
    print(json.dumps({"device": device(), "neurons": neurons, "results": results}))


if __name__ == "__main__":
    main()
