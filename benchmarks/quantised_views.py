"""Draft views of a quantised target beside each other: how close they stay to it, and for how many bytes.

A text runs through the model teacher-forced: once as the target, once for each view and effort, in NumPy and float32,
all positions at a time (each position selects for itself). Compared at every position: the likeliest token, and the
divergence of the two distributions. Bytes are those of weights that one token's matrices read, as a share of the
target's own. Cosines are those of a matrix's products with the target's, at effort 1 over the text's own activations.
`bucket-q4-5` is `bucket-q4` with 5 % of the weights kept apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bucket_codes import SliceCodes, bucket_q4, bucket_q8
from common import add_json_option, log_softmax, print_machine, print_table, write_json
from specdec.kernels.reference.selection import select_tiers
from specdec.kernels.reference.transformer import DenseTransformer

from specdec.catalogue import resolve_model
from specdec.lab.tune.text import read_text, split_passages
from specdec.store import Store
from specdec.tokenizers import load_tokenizer
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.nested import NestedMatrix
from specdec.weights.quantised import ExactMatrix, QuantisedMatrix
from specdec.weights.registry import get_view

DEFAULT = (
    "own:0.75,0.5,0.35",
    "nested:1,0.7,0.5",
    "nested3:1,0.7",
    "nested2:1",
    "int4:1,0.7,0.5",
    "bucket-q8:1,0.7,0.5,0.35",
    "bucket-q4:1,0.7,0.5",
)


@dataclass
class Weights:
    """A matrix as a view multiplies by it.

    Attributes:
        whole: float32 (in, out).
        tiers: uint8 (in, out), tier of each weight, or None where an input is taken whole.
        scores: float32 (in, tiers).
        always: float32 (in, out) that every multiplication adds, or None.
        cost: bytes read for the numbers of tiers (in,) taken of each input.
    """

    whole: np.ndarray
    tiers: np.ndarray | None
    scores: np.ndarray
    always: np.ndarray | None
    cost: Callable[[np.ndarray], float]

    def multiply(self, rows: np.ndarray, effort: float) -> tuple[np.ndarray, float]:
        """Products float32 (rows, out), and the mean bytes of one row."""
        tiers = self.scores.shape[1]
        if effort >= 1:
            prefixes = np.full((1, rows.shape[1]), tiers, np.uint8)
        else:
            sizes = (1,) * tiers
            prefixes = np.stack([select_tiers(row, self.scores, sizes, effort=effort) for row in rows])
        if effort >= 1 or self.tiers is None:
            total = (rows if effort >= 1 else rows * (prefixes > 0)) @ self.whole
        else:
            total = np.zeros((len(rows), self.whole.shape[1]), np.float32)
            for k in range(tiers):
                total += (rows * (prefixes > k)) @ np.where(self.tiers == k, self.whole, np.float32(0))
        if self.always is not None:
            total += rows @ self.always
        sample = prefixes[:: max(1, len(prefixes) // 4)]
        return total, float(np.mean([self.cost(prefix) for prefix in sample]))


def _of_view(matrix: Any) -> Weights:
    return Weights(np.ascontiguousarray(matrix.dequantise().T), None, matrix.scores, None, matrix.bytes_read)


def _of_codes(codes: SliceCodes) -> Weights:
    def cost(prefix: np.ndarray) -> float:
        return codes.bytes_read(float(prefix.sum()) / codes.scores.size)

    return Weights(codes.weights, codes.tiers, codes.scores, codes.outliers, cost)


def build(view: str, matrix: ExactMatrix) -> Weights:
    """A matrix in one of the views that this benchmark knows."""
    if view.startswith("bucket-q"):
        weights = np.ascontiguousarray(matrix.dequantise().T)
        if view == "bucket-q8":
            return _of_codes(bucket_q8(weights))
        percent = view.removeprefix("bucket-q4").removeprefix("-")
        return _of_codes(bucket_q4(weights, outliers=float(percent) / 100) if percent else bucket_q4(weights))
    if isinstance(matrix, BucketedMatrix):
        raise SystemExit("this benchmark compares views of targets whose matrices are all quantised")
    if view in ("nested3", "nested2"):
        return _of_view(NestedMatrix(matrix, int(view[-1])))
    return _of_view(get_view(view).build(matrix))


class ViewTransformer(DenseTransformer):
    """The model in float32, its matrices through a view at an effort."""

    def __init__(self, store: Store, weights: Callable[[str], Weights], effort: float, names: Sequence[str]) -> None:
        super().__init__(store.config, self._dense, store.vector)
        self.store, self.weights, self.effort, self.names = store, weights, effort, set(names)
        self.bytes_read = 0.0
        self.seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def _dense(self, name: str) -> np.ndarray:
        """Embedding rows; the other matrices go through `_multiply`."""
        return self.store.table_rows(name) if name in self.config.tables() else self.store.exact(name).dequantise()

    def _multiply(self, name: str, rows: np.ndarray) -> np.ndarray:
        products, count = self.weights(name).multiply(rows.astype(np.float32), self.effort)
        self.bytes_read += count
        if name in self.names:
            self.seen[name] = rows.astype(np.float32), products
        return products.astype(np.float64)


@dataclass
class Row:
    """One line of the table."""

    view: str
    effort: float
    bytes_share: float
    top1: float
    kl: float
    cosine: dict[str, float] = field(default_factory=dict)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Mean cosine of corresponding rows."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.where(norms > 0, norms, 1)).mean())


def kind(name: str) -> str:
    """`q` of `layers.0.attn.q`."""
    return name.rsplit(".", 1)[-1]


def measure(store: Store, ids: list[int], asked: Sequence[tuple[str, list[float]]]) -> tuple[list[Row], float]:
    """All views; and the target's bytes a token."""
    config = store.config
    picked = {0, config.num_layers // 2, config.num_layers - 1}
    names = [n for n in config.matrices() if n == "head" or int(n.split(".")[1]) in picked]
    target = ViewTransformer(store, lambda name: build("own", store.exact(name)), 1.0, names)
    dense = log_softmax(target.logits(ids))
    rows = []
    for view, efforts in asked:
        made: dict[str, Weights] = {}

        def weights(name: str, view: str = view, made: dict[str, Weights] = made) -> Weights:
            if name not in made:
                made[name] = build(view, store.exact(name))
            return made[name]

        # A view of a small model is built once for all efforts: at most 13 bytes a weight.
        small = len(efforts) > 1 and sum(a * b for a, b in config.matrices().values()) < 2e8
        for effort in efforts:
            start_s = time.perf_counter()
            source = weights if small else lambda name, view=view: build(view, store.exact(name))
            model = ViewTransformer(store, source, effort, [])
            logits = log_softmax(model.logits(ids))
            row = Row(view, effort, model.bytes_read / target.bytes_read, 0.0, 0.0)
            row.top1 = float((logits.argmax(axis=1) == dense.argmax(axis=1)).mean())
            row.kl = float((np.exp(dense) * (dense - logits)).sum(axis=1).mean())
            found: dict[str, list[float]] = {}
            for name in names if effort >= 1 else []:
                inputs, wanted = target.seen[name]
                found.setdefault(kind(name), []).append(cosine(source(name).multiply(inputs, effort)[0], wanted))
            row.cosine = {what: float(np.mean(values)) for what, values in found.items()}
            rows.append(row)
            print(f"  {time.perf_counter() - start_s:.0f} s: {row}", file=sys.stderr, flush=True)
    return rows, target.bytes_read


def parse(texts: Sequence[str]) -> list[tuple[str, list[float]]]:
    """`view:e1,e2,…` arguments."""
    pairs = (text.partition(":") for text in texts)
    return [(view, [float(effort) for effort in efforts.split(",")]) for view, _, efforts in pairs]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a store that keeps quantised blocks")
    parser.add_argument("--view", nargs="+", default=DEFAULT, metavar="VIEW:E,E")
    parser.add_argument("--tokens", type=int, default=128, help="length of the text")
    parser.add_argument("--text", help="a UTF-8 file (default: the packaged calibration text)")
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    store = Store.open(resolve_model(args.model), verify=False)
    if not all(isinstance(store.exact(name), QuantisedMatrix) for name in store.config.matrices()):
        raise SystemExit(f"{args.model} has matrices that are not quantised: convert with --to keep or --to q8")
    ids = split_passages(read_text(args.text), load_tokenizer(store.tokenizer_path), count=1, length=args.tokens)[0]
    rows, nbytes = measure(store, ids, parse(args.view))
    print(f"{args.model}: {nbytes / 1e6:.1f} MB of weights a token, types {sorted(set(store.types.values()))}")
    kinds = list(dict.fromkeys(what for row in rows for what in row.cosine))
    header = ["view", "effort", "bytes", "top-1", "KL", *(f"cos {what}" for what in kinds)]
    cells = [[f"{r.cosine[k]:.4f}" if k in r.cosine else "" for k in kinds] for r in rows]
    table = [[r.view, r.effort, r.bytes_share, r.top1, r.kl, *cell] for r, cell in zip(rows, cells, strict=True)]
    print_table(header, table)
    types = sorted(set(store.types.values()))
    settings = {"model": str(args.model).rsplit("/", 1)[-1], "tokens": args.tokens, "types": types, "bytes": nbytes}
    write_json(args.json, {"settings": settings, "rows": [vars(row) for row in rows]}, benchmark="quantised_views")


if __name__ == "__main__":
    main()
