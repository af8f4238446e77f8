"""Vector search beside other libraries: recall@10 against time, single thread, one query at a time.

    python benchmarks/search.py build glove --folder sets            # indexes, kept in the folder; hours for graphs
    python benchmarks/search.py time glove --folder sets --json glove.json
    python benchmarks/search.py draw glove.json … --out front.png    # needs matplotlib

Sets are those of `benchmarks/search_data.py`. Contenders whose package is missing are named and left out. Every round
times each setting of each contender on the same queries in turn; the median of rounds counts. Build times are seconds
of processor time. The truth is brute force in float64 over float32 vectors; specdec keeps float16, as by default.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import search_data  # noqa: E402
from common import add_json_option, print_machine, print_table, write_json  # noqa: E402
from search_peers import CONTENDERS, Contender, Faiss, K, Setting, Specdec  # noqa: E402

TRUTH_BLOCK = 8192


@dataclass
class Point:
    """One setting of one contender."""

    contender: str
    setting: Setting
    recall: float
    top1: float
    us: float  # of a query, median
    build_s: float
    bytes: int


def truth_of(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ids of the ten largest inner products in float64, best first, ties by the lower id."""
    best = np.full((len(queries), K), -np.inf)
    ids = np.zeros((len(queries), K), np.int64)
    asked = queries.astype(np.float64)
    for first in range(0, len(vectors), TRUTH_BLOCK):
        scores = asked @ vectors[first : first + TRUTH_BLOCK].T.astype(np.float64)
        both = np.concatenate([best, scores], axis=1)
        names = np.concatenate([ids, np.broadcast_to(np.arange(first, first + scores.shape[1]), scores.shape)], axis=1)
        order = np.lexsort((names, -both), axis=1)[:, :K]
        best, ids = np.take_along_axis(both, order, axis=1), np.take_along_axis(names, order, axis=1)
    return ids


def read_set(name: str, folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and `count` queries, normalised where cosine is meant: then every library searches inner products."""
    vectors, queries = search_data.load(name, folder)
    queries = queries[np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(int)]
    if name in ("glove", "debian"):
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(queries, np.float32)


def paths(folder: Path, name: str, contender: str) -> tuple[Path, Path]:
    """Where an index lies, and a note of what building it took."""
    stem = f"{search_data.set_name(name)}.{contender}"
    return folder / f"{stem}.built", folder / f"{stem}.json"


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def build(arguments: argparse.Namespace) -> None:
    vectors, _ = read_set(arguments.set, arguments.folder, 1)
    for key in arguments.only or CONTENDERS:
        path, note = paths(arguments.folder, arguments.set, key)
        if note.exists():
            continue
        contender = CONTENDERS[key]()
        try:
            start = time.process_time()
            contender.build(vectors)
            seconds = time.process_time() - start
        except ImportError as missing:
            print(f"{contender.name} is left out: {missing}", flush=True)
            continue
        contender.save(path)
        note.write_text(json.dumps({"build_s": seconds, "bytes": size_of(path)}))
        print(f"{arguments.set}: {contender.name} built in {seconds:.1f} s, {size_of(path) / 1e6:.1f} MB", flush=True)


def measure(arguments: argparse.Namespace) -> None:
    print_machine()
    vectors, queries = read_set(arguments.set, arguments.folder, arguments.queries)
    kept = arguments.folder / f"{search_data.set_name(arguments.set)}.truth{len(queries)}.npy"
    if not kept.exists():
        np.save(kept, truth_of(vectors, queries))
    truth = np.load(kept)
    runs: list[tuple[Contender, Setting, Callable[[np.ndarray], np.ndarray], dict[str, Any]]] = []
    for key in arguments.only or CONTENDERS:
        path, note = paths(arguments.folder, arguments.set, key)
        if not note.exists():
            print(f"{key} is not built, and left out")
            continue
        contender = CONTENDERS[key]()
        contender.load(path, vectors)
        built = json.loads(note.read_text())
        runs += [(contender, setting, contender.searcher(setting), built) for setting in contender.settings()]
    points = time_all(runs, queries, truth, arguments.seconds)
    report(points)
    write_json(
        arguments.json,
        {
            "set": search_data.set_name(arguments.set),
            "n": len(vectors),
            "d": vectors.shape[1],
            "points": [asdict(point) for point in points],
        },
        benchmark="search",
    )


def time_all(runs: Sequence[Any], queries: np.ndarray, truth: np.ndarray, seconds: float) -> list[Point]:
    """Rounds over all settings until the time is up; at least two, each over a different part of the queries."""
    hits, firsts, times = [[list[float]() for _ in runs] for _ in range(3)]
    start, part, number = time.perf_counter(), 10, 0
    while number < 2 or time.perf_counter() - start < seconds:
        chosen = (np.arange(part) + number * part) % len(queries)
        for j, (_, _, search, _) in enumerate(runs):
            search(queries[chosen[0]])  # warms up
            began = time.perf_counter()
            found = [search(queries[i]) for i in chosen]
            times[j].append((time.perf_counter() - began) / part * 1e6)
            hits[j] += [
                len(set(map(int, ids)) & set(truth[i].tolist())) / K for ids, i in zip(found, chosen, strict=True)
            ]
            firsts[j] += [float(int(ids[0]) == truth[i][0]) for ids, i in zip(found, chosen, strict=True)]
        number += 1
    print(f"{number} rounds of {part} queries")
    return [
        Point(
            one.name,
            setting,
            float(np.mean(hits[j])),
            float(np.mean(firsts[j])),
            float(np.median(times[j])),
            built["build_s"],
            built["bytes"],
        )
        for j, (one, setting, _, built) in enumerate(runs)
    ]


def front(points: Iterable[Point]) -> list[Point]:
    """Points than which none is both faster and better, by rising time."""
    best, kept = -1.0, []
    for point in sorted(points, key=lambda one: (one.us, -one.recall)):
        if point.recall > best:
            best = point.recall
            kept.append(point)
    return kept


def report(points: list[Point]) -> None:
    names = list(dict.fromkeys(point.contender for point in points))
    flat = min((point.us for point in points if point.contender == Faiss.name), default=float("nan"))
    rows = []
    for name in names:
        mine = [point for point in points if point.contender == name]
        row: list[Any] = [name]
        for least in (0.9, 0.95, 0.99):
            good = [point for point in mine if point.recall >= least]
            fastest = min(good, key=lambda point: point.us, default=None)
            row.append("-" if fastest is None else f"{fastest.us:.0f} us, {flat / fastest.us:.1f}x {fastest.setting}")
        rows.append([*row, f"{mine[0].build_s:.0f}", f"{mine[0].bytes / 1e6:.0f}"])
    print_table(["contender", "recall 0.90", "0.95", "0.99", "build s", "MB"], rows)
    for point in front(point for point in points if point.contender == Specdec.name):
        print(f"specdec {point.setting}: recall {point.recall:.3f}, top 1 {point.top1:.3f}, {point.us:.0f} us")


def draw(arguments: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = [json.loads(Path(file).read_text())["results"] for file in arguments.files]
    columns = 2 if len(files) == 4 else min(len(files), 3)
    rows = -(-len(files) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(point["contender"] for one in files for point in one["points"]))
    for one, axis in zip(files, axes.flat, strict=False):
        points = [Point(**point) for point in one["points"]]
        for number, name in enumerate(names):
            line = front(point for point in points if point.contender == name)
            style = {"linewidth": 2.5, "zorder": 3} if name == Specdec.name else {"linewidth": 1}
            axis.plot(
                [p.recall for p in line],
                [1e6 / p.us for p in line],
                "o-",
                color=f"C{number}",
                markersize=4,
                label=name,
                **style,
            )
        axis.set(title=f"{one['set']}: {one['n']:,} x {one['d']}", xlim=(0.6, 1.005), yscale="log")
        axis.set_xlabel("recall@10")
        axis.set_ylabel("queries a second, one thread")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(files) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, 2 * columns), frameon=False)
    figure.savefig(arguments.out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    for action, run in (("build", build), ("time", measure)):
        one = actions.add_parser(action)
        one.add_argument("set", help="glove, debian, or a model's name or file")
        one.add_argument("--folder", type=Path, required=True)
        one.add_argument("--only", nargs="+", choices=CONTENDERS)
        one.set_defaults(run=run)
    one.add_argument("--queries", type=int, default=200)
    one.add_argument("--seconds", type=float, default=60)
    add_json_option(one)
    drawing = actions.add_parser("draw")
    drawing.add_argument("files", nargs="+")
    drawing.add_argument("--out", type=Path, required=True)
    drawing.set_defaults(run=draw)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
