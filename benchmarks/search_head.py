"""A logits layer as a draft would use it: views of the engine beside vector search, in agreement, bytes and time.

    python benchmarks/search_head.py MODEL --folder sets --threads 1

Rows are hidden states of a text (`benchmarks/search_data.py`). `top 1` is the share of rows whose most likely token is
that of the exact view. Each round times every contender on the same rows in turn; the median of rounds counts. A search
finds the ten best tokens with exact logits; a view computes all logits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import search_data
from common import add_json_option, print_machine, print_table, write_json

import specdec
from specdec.runtimes.base import find_view
from specdec.search import BucketIndex

K, PART = 10, 10
SEARCHES = ((0.05, 100), (0.08, 100), (0.12, 100), (0.15, 100), (0.15, 300), (0.25, 300), (1.0, None))
VIEWS = (("exact", 1.0), ("int4", 1.0), ("int4", 0.5), ("int4", 0.3), ("own", 0.5), ("nested", 1.0))

Best = Callable[[np.ndarray], tuple[int, int]]  # most likely token of a row, and bytes read


def by_view(runtime: Any, view: str, effort: float) -> Best:
    """The head of a view of the engine.

    Raises:
        SpecdecError: the model has no such view.
    """
    runtime.prepare(view)
    draft = None if find_view(runtime, view).reads_exact else runtime._drafts[view]
    index = runtime._index["head"]
    y = np.empty((1, runtime.config.vocab), np.float32)

    def best(row: np.ndarray) -> tuple[int, int]:
        read = runtime._model.multiply(index, row[None], draft, effort, y)
        return int(y.argmax()), int(read)

    return best


def by_search(index: BucketIndex, effort: float, rerank: int | None, threads: int) -> Best:
    """The head as an index of vectors."""
    dims, count = index.dims, len(index)

    def best(row: np.ndarray) -> tuple[int, int]:
        _, ids, scored = index.search_counted(row, K, effort=effort, rerank=rerank, threads=threads)
        return int(ids[0]), int(effort * 2 * dims) * count // 2 + 8 * count + int(scored[0]) * dims * 2

    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--folder", type=Path, required=True, help="where search_data.py keeps its arrays")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    add_json_option(parser)
    arguments = parser.parse_args()
    print_machine()
    vectors, rows = search_data.load(arguments.model, arguments.folder)
    model = specdec.load(arguments.model, runtime="native", threads=arguments.threads)
    runtime: Any = model.runtime
    contenders: dict[str, Best] = {}
    for view, effort in VIEWS:
        try:
            contenders[f"{view} {effort:g}"] = by_view(runtime, view, effort)
        except specdec.SpecdecError as error:
            print(f"{view} is left out: {error}")
    index = BucketIndex.build(vectors)
    for effort, rerank in SEARCHES:
        contenders[f"search {effort:g}, {rerank or 'bounded'}"] = by_search(index, effort, rerank, arguments.threads)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: dict[str, list[int]] = {name: [] for name in contenders}
    read: dict[str, list[int]] = {name: [] for name in contenders}
    start, number = time.perf_counter(), 0
    while number < 2 or time.perf_counter() - start < arguments.seconds:
        part = rows[(np.arange(PART) + number * PART) % len(rows)]
        for name, best in contenders.items():
            best(part[0])
            began = time.perf_counter()
            found = [best(row) for row in part]
            times[name].append((time.perf_counter() - began) / PART * 1e6)
            tokens[name] += [token for token, _ in found]
            read[name] += [nbytes for _, nbytes in found]
        number += 1
    exact = tokens["exact 1"]
    table = [
        [
            name,
            float(np.mean([a == b for a, b in zip(tokens[name], exact, strict=True)])),
            round(float(np.mean(read[name])) / 1e6, 2),
            round(float(np.median(times[name]))),
        ]
        for name in contenders
    ]
    header = ["logits layer", "top 1", "MB read", "us"]
    print(f"{number * PART} rows, {arguments.threads} threads")
    print_table(header, table)
    results = {"model": search_data.set_name(arguments.model), "threads": arguments.threads}
    write_json(
        arguments.json,
        {**results, "rows": [dict(zip(header, row, strict=True)) for row in table]},
        benchmark="search_head",
    )


if __name__ == "__main__":
    main()
