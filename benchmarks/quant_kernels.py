"""Single multiplications of quantised matrices: time, GB/s, ratio to one row, by type and instruction set.

On random blocks; types take turns, so that none stays in cache. A 16-bit matrix of the same shape is timed too. Whole
steps are in `cpu_step`.

    python benchmarks/quant_kernels.py --shape 8960x1536
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
from cpu_kernels import RandomSource

from specdec.runtimes.base import EXACT, find_view
from specdec.runtimes.native.runtime import NativeRuntime, native_module
from specdec.store import Store, convert
from specdec.weights.dtypes import to_float32
from specdec.weights.quantised import QuantisedTable, quantised_type

TYPES = ("q8_0", "q4_k", "q6_k", "q5_0", "q4_1")
# (view, effort, rows); the first is what ratios are to.
CASES = [("exact", 1.0, rows) for rows in (1, 2, 5, 9, 16)] + [("nested", effort, 1) for effort in (1.0, 0.25)]
COPIES_BYTES = 192 << 20  # in 16 bits


class RandomBlocks(RandomSource):
    """Random codes under scales of about 0.01, the MLP in one type."""

    def __init__(self, outputs: int, inputs: int, kind: str) -> None:
        super().__init__(outputs, inputs, COPIES_BYTES)
        if kind != "16":
            self.types = {name: kind for name in self.config.matrices() if ".mlp." in name}

    def quantised(self, name: str, kind: str) -> QuantisedTable:
        shape, form = self.config.matrices()[name], quantised_type(kind)
        size = form.tensors((1, form.block))["blocks"].shape[1]
        raw = self._random.integers(0, 256, (shape[0], shape[1] // form.block, size), dtype=np.uint8)
        floats = (208,) if kind == "q6_k" else (0, 2) if kind.endswith("_k") or form.extra == 4 else (0,)
        for at in floats:
            scales = self._random.uniform(0.005, 0.015, raw.shape[:2]).astype(np.float16)
            raw[..., at : at + 2] = scales[..., None].view(np.uint8)
        return QuantisedTable(kind, shape, {"blocks": raw.reshape(shape[0], -1)})


class Matrices:
    """Copies of one matrix in one type, on one instruction set."""

    def __init__(self, store: Store, isa: str | None, threads: int | None) -> None:
        self.runtime = NativeRuntime(store, threads=threads, isa=isa)
        if store.quantised:
            self.runtime.prepare("nested")
        names = {name: index for index, name in enumerate(store.config.matrices())}
        self.index = [index for name, index in names.items() if name.endswith(".gate")]
        self.others = [index for name, index in names.items() if name.endswith(".up")]
        self.shape = store.config.matrices()["layers.0.mlp.gate"]
        self._check(store)

    def _check(self, store: Store) -> None:
        """Refuse to time a kernel whose rows are not the float64 product."""
        exact = store.exact("layers.0.mlp.gate")
        weights = exact.dequantise() if store.quantised else to_float32(exact.dense_bits(), store.dtype)
        x, y = self._rows(5)
        self.runtime._model.multiply(self.index[0], x, None, 1.0, y)
        wanted = x.astype(np.float64) @ weights.T.astype(np.float64)
        if np.abs(y - wanted).max() > 1e-3 * np.abs(wanted).max():
            sys.exit(f"wrong result on {self.runtime.isa}: nothing was timed")

    def _rows(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.random.default_rng(2).standard_normal((rows, self.shape[1]), dtype=np.float32)
        return x, np.empty((rows, self.shape[0]), np.float32)

    def seconds(self, view: str, effort: float, rows: int) -> tuple[float, float]:
        """Time and bytes of one product, over all copies; after as many others, which wake this runtime's threads."""
        x, y = self._rows(rows)
        draft = None if find_view(self.runtime, view).reads_exact else self.runtime._drafts[view]
        for index in self.others:
            self.runtime._model.multiply(index, x, draft, effort, y)
        start = time.perf_counter()
        read = sum(self.runtime._model.multiply(index, x, draft, effort, y) for index in self.index)
        return (time.perf_counter() - start) / len(self.index), read / len(self.index)


def measure(matrices: dict[tuple[str, str], Matrices], repeat: int) -> list[dict[str, Any]]:
    """Every case of every type once a round, so that all see the same machine; ratios are medians of rounds."""
    cases = [(key, case) for case in CASES for key in matrices if case[0] == EXACT or key[1] != "16"]
    times: dict[Any, list[float]] = {case: [] for case in cases}
    read: dict[Any, float] = {}
    speed = []
    for turn in range(repeat + 1):
        threads = next(iter(matrices.values())).runtime.threads
        speed.append((1 << 28) / native_module().seconds_to_read(threads, 1 << 28) / 1e9)
        for key, case in cases:
            taken, read[key, case] = matrices[key].seconds(*case)
            if turn:
                times[key, case].append(taken)
    results = []
    for (key, case), taken in times.items():
        middle, one = statistics.median(taken), matrices[key]
        ratio = statistics.median(a / b for a, b in zip(taken, times[key, CASES[0]], strict=True))
        core = middle * one.runtime.threads * 64 / (one.shape[0] * one.shape[1])
        results.append({"isa": key[0], "type": key[1], "view": case[0], "effort": case[1], "rows": case[2],
                        "us": middle * 1e6, "spread": (max(taken) - min(taken)) / middle,
                        "gb_s": read[key, case] / middle / 1e9, "core_ns_per_64": core * 1e9, "ratio": ratio,
                        "read_gb_s": statistics.median(speed)})  # fmt: skip
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="8960x1536", help="outputs x inputs (default %(default)s)")
    parser.add_argument("--types", nargs="+", default=["16", *TYPES], help='block types, "16" for float16')
    parser.add_argument("--isa", nargs="+", default=[None], help="instruction sets (default the best)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeat", type=int, default=9, help="rounds, all cases alternating (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    outputs, inputs = (int(n) for n in arguments.shape.split("x"))
    matrices = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.types:
            source = RandomBlocks(outputs, inputs, kind)
            path = convert(source, Path(folder) / kind, quantised=None if kind == "16" else "keep")
            for isa in arguments.isa:
                found = Matrices(Store.open(path, verify=False), isa, arguments.threads)
                matrices[found.runtime.isa, kind] = found
        results = measure(matrices, arguments.repeat)
    print_machine()
    print(f"{arguments.shape}, median of {arguments.repeat} rounds after one of warm-up")
    print(f"read {results[0]['read_gb_s']:.1f} GB/s")
    header = ("isa", "type", "view", "effort", "M", "us", "spread", "GB/s", "core ns per 64", "of M=1")
    keys = ("isa", "type", "view", "effort", "rows", "us", "spread", "gb_s", "core_ns_per_64", "ratio")
    print_table(header, [tuple(row[key] for key in keys) for row in results])
    write_json(arguments.json, results, benchmark="quant_kernels")


if __name__ == "__main__":
    main()
