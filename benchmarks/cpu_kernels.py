"""Single kernels of the native runtime: GB/s, and the ratio to a dense 16-bit product of the same matrix.

By view, effort and rows M, on random weights; copies of the matrix take turns, so that none stays in cache. Whole steps
are in `cpu_step`, quantised matrices in `quant_kernels`.

    python benchmarks/cpu_kernels.py --shape 8960x1536
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json

from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import EXACT, find_view
from specdec.runtimes.native.runtime import NativeRuntime, native_module
from specdec.store import Store, convert
from specdec.weights.dtypes import to_float32

COPIES_BYTES = 256 << 20


class RandomSource:
    """Gaussian weights in a model whose MLP matrices have the wanted shape."""

    def __init__(self, outputs: int, inputs: int, copies_bytes: int = COPIES_BYTES) -> None:
        self.description = {"kind": "random"}
        self.dtype = "float16"
        self.types: dict[str, str] = {}
        layers = max(1, copies_bytes // (3 * 2 * outputs * inputs))
        self.tokenizer_files: dict[str, bytes] = {}
        self.config = ModelConfig.uniform(
            family="llama",
            vocab_size=64,
            hidden_size=inputs,
            intermediate_size=outputs,
            num_layers=layers,
            num_heads=1,
            num_kv_heads=1,
            head_dim=64,
            norm_eps=1e-5,
            rope_theta=1e4,
            max_context=64,
            tie_embeddings=True,
        )
        self._random = np.random.default_rng(0)

    def matrix(self, name: str) -> np.ndarray:
        shape = self.config.matrices()[name]
        return (self._random.standard_normal(shape, dtype=np.float32) / 40).astype(np.float16).view(np.uint16)

    def vector(self, name: str) -> np.ndarray:
        return np.ones(self.config.vectors()[name], np.float32)

    def close(self) -> None:
        """Nothing to close."""


def check(runtime: NativeRuntime, store: Store, index: int, name: str, rows: int) -> None:
    """Refuse to time a kernel whose rows are not the float64 product."""
    outputs, inputs = store.config.matrices()[name]
    x = np.random.default_rng(1).standard_normal((rows, inputs), dtype=np.float32)
    y = np.empty((rows, outputs), np.float32)
    runtime._model.multiply(index, x, None, 1.0, y)
    wanted = x.astype(np.float64) @ to_float32(store.exact(name).dense_bits(), store.dtype).T.astype(np.float64)
    if np.abs(y - wanted).max() > 1e-3 * np.abs(wanted).max():
        sys.exit(f"wrong result with {rows} rows: nothing was timed")


def seconds(runtime: NativeRuntime, matrices: list[int], shape: tuple[int, int], case: tuple[str, float, int]) -> Any:
    """Time and bytes of one product, over all copies of the matrix."""
    view, effort, rows = case
    x = np.random.default_rng(2).standard_normal((rows, shape[1]), dtype=np.float32)
    y = np.empty((rows, shape[0]), np.float32)
    draft = None if find_view(runtime, view).reads_exact else runtime._drafts[view]
    start = time.perf_counter()
    read = sum(runtime._model.multiply(index, x, draft, effort, y) for index in matrices)
    return (time.perf_counter() - start) / len(matrices), read / len(matrices)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="8960x1536", help="outputs x inputs (default %(default)s)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeat", type=int, default=9, help="rounds, all cases alternating (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    outputs, inputs = (int(n) for n in arguments.shape.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(convert(RandomSource(outputs, inputs), Path(folder) / "store"), verify=False)
        runtime = NativeRuntime(store, threads=arguments.threads)
        for view in runtime.views():
            runtime.prepare(view)
        names = {name: index for index, name in enumerate(store.config.matrices())}
        matrices = [index for name, index in names.items() if name.endswith(".gate")]
        for rows in (1, 2, 5, 9, 16, 64):
            check(runtime, store, names["layers.0.mlp.gate"], "layers.0.mlp.gate", rows)
        results = measure(runtime, matrices, (outputs, inputs), arguments.repeat)
    print_machine()
    print(f"{arguments.shape}, {runtime.isa}, {runtime.threads} threads, {len(matrices)} copies")
    print(f"median of {arguments.repeat} rounds after one of warm-up; read {results[0]['read_gb_s']:.1f} GB/s")
    header = ("view", "effort", "M", "us", "spread", "GB/s", "of dense M=1")
    keys = ("view", "effort", "rows", "us", "spread", "gb_s", "ratio")
    print_table(header, [tuple(row[key] for key in keys) for row in results])
    write_json(arguments.json, results, benchmark="cpu_kernels")


def measure(runtime: NativeRuntime, matrices: list[int], shape: tuple[int, int], repeat: int) -> list[dict[str, Any]]:
    """Every case once a round, so that all see the same machine; ratios are medians of the rounds' own."""
    cases = [(EXACT, 1.0, rows) for rows in (1, 2, 3, 5, 9, 16, 64)]
    cases += [(EXACT, effort, rows) for effort in (0.6, 0.25) for rows in (1, 5, 9)]
    own = [view.name for view in runtime.views().values() if not view.reads_exact]
    cases += [(view, effort, 1) for view in own for effort in (1.0, 0.5, 0.25, 0.15)]
    times: dict[Any, list[float]] = {case: [] for case in cases}
    bytes_read: dict[Any, float] = {}
    reading = []
    for turn in range(repeat + 1):
        reading.append((1 << 28) / native_module().seconds_to_read(runtime.threads, 1 << 28) / 1e9)
        for case in cases:
            taken, bytes_read[case] = seconds(runtime, matrices, shape, case)
            if turn:
                times[case].append(taken)
    dense = times[cases[0]]
    results = []
    for case in cases:
        middle = statistics.median(times[case])
        spread = (max(times[case]) - min(times[case])) / middle
        # Draft views multiply the matrices that share a row together: here gate and up, as many products again.
        products = 1 if case[0] == EXACT else 2
        ratio = statistics.median(a / b for a, b in zip(times[case], dense, strict=True)) / products
        results.append({"view": case[0], "effort": case[1], "rows": case[2], "us": middle * 1e6, "spread": spread,
                        "gb_s": bytes_read[case] / middle / 1e9, "ratio": ratio,
                        "read_gb_s": statistics.median(reading)})  # fmt: skip
    return results


if __name__ == "__main__":
    main()
