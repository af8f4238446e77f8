"""Buckets or whole runs: what chooses candidates best for the bytes that it reads. In NumPy; nothing is timed.

    python benchmarks/search_tiers.py MODEL --folder sets

`buckets` is bucketMul as the engine's bucket8 view has it: 64 vectors of a dimension make a bucket, ranked by size
into four tiers of 16 weights; a tier costs 16 bytes of weights and 8 of mask (the last none). `runs` is what
`specdec.search` reads: 4 bits of a dimension of all vectors. Both take what scores highest for the query. Recall is the
share of the true ten best among the best so many candidates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import search_data
from common import add_json_option, print_table, write_json

BUCKET, TIERS, K = 64, 4, 10
BYTES_PER_PRODUCT = (16 * TIERS + 8 * (TIERS - 1)) / BUCKET
RERANKS = (100, 300)


def tiers_of(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tier of each weight (n, d), and mean size of each tier of a dimension (4, d)."""
    sizes = np.abs(vectors).reshape(-1, BUCKET, vectors.shape[1])
    rank = np.argsort(np.argsort(-sizes, axis=1, kind="stable"), axis=1, kind="stable")
    tiers = (rank // (BUCKET // TIERS)).astype(np.int8).reshape(vectors.shape)
    scores = [np.where(tiers == tier, np.abs(vectors), 0).mean(axis=0) * TIERS for tier in range(TIERS)]
    return tiers, np.stack(scores)


def codes_of(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What 4-bit codes say of centred vectors, over the spread of each dimension (n, d), and the spread (d,)."""
    centred = vectors - vectors.mean(axis=0)
    spread = centred.std(axis=0)
    scaled = centred / spread
    step = np.sqrt(np.square(scaled).mean(axis=1, keepdims=True)) * 0.38
    return (np.clip(np.floor(scaled / step), -8, 7) + 0.5) * step, spread


def places(scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many vectors score higher than each of those wanted."""
    return np.searchsorted(np.sort(-scores), -scores[wanted])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", metavar="MODEL")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument(
        "--vectors", type=int, default=49152, help="the first so many of the set (default: %(default)s)"
    )
    add_json_option(parser)
    arguments = parser.parse_args()
    vectors, queries = search_data.load(arguments.set, arguments.folder)
    vectors = np.array(vectors[: arguments.vectors // BUCKET * BUCKET], np.float32)
    queries = queries[np.linspace(0, len(queries) - 1, arguments.queries).astype(int)]
    wanted = np.argpartition(-(queries @ vectors.T), K, axis=1)[:, :K]
    (tiers, sizes), (codes, spread) = tiers_of(vectors), codes_of(vectors)
    rows = []
    for effort in (0.02, 0.04, 0.08, 0.15):
        found: dict[str, list[np.ndarray]] = {"buckets": [], "runs": []}
        for query, best in zip(queries, wanted, strict=True):
            scores = np.abs(query) * sizes
            least = np.partition(scores.ravel(), -int(effort * scores.size))[-int(effort * scores.size)]
            taken = (scores >= least).sum(axis=0)
            used = taken > 0
            found["buckets"].append(
                places(np.where(tiers[:, used] < taken[used], vectors[:, used], 0) @ query[used], best)
            )
            count = min(int(effort * BYTES_PER_PRODUCT / 0.5 * vectors.shape[1]), vectors.shape[1])
            chosen = np.argpartition(-np.abs(query * spread), count - 1)[:count]
            found["runs"].append(places(codes[:, chosen] @ (query * spread)[chosen], best))
        for name, ranks in found.items():
            recalls = [float((np.concatenate(ranks) < rerank).mean()) for rerank in RERANKS]
            rows.append([f"{effort * BYTES_PER_PRODUCT:.3f}", name, *recalls])
    header = ["bytes a dimension", "layout", *(f"recall, {rerank} candidates" for rerank in RERANKS)]
    print_table(header, rows)
    write_json(arguments.json, [dict(zip(header, row, strict=True)) for row in rows], benchmark="search_tiers")


if __name__ == "__main__":
    main()
