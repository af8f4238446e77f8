"""Vector search in NumPy float64: what kernels/cpu/search computes, written for reading and for tests.

Codes say y_i = step * ((u_i >> 4) - 7.5 + ((u_i & 15) - 7.5) / 16) of a vector x = centre + spread * y.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LINE = 128  # vectors that share a line of 64 bytes


def unpack(codes: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Codes as stored (planes, d, width / 2) as nibbles (planes, d, count), by vector."""
    u = np.arange(_LINE // 2)
    byte = 16 * (u % 16 // 4) + 4 * (u // 16) + u % 4  # vector u lies there, vector 64 + u in the upper nibble
    lines = codes.reshape(*codes.shape[:2], -1, _LINE // 2)[..., byte]
    return np.concatenate([lines & 15, lines >> 4], axis=-1).reshape(*codes.shape[:2], -1)[..., :count]


def levels(codes: NDArray[np.uint8], count: int) -> NDArray[np.float64]:
    """What each plane says, over the step: float64 (planes, d, count)."""
    scale = (1.0 / 16.0 ** np.arange(len(codes)))[:, None, None]
    result: NDArray[np.float64] = (unpack(codes, count) - 7.5) * scale
    return result


def select_runs(
    query: NDArray[np.float64], spread: NDArray[np.float32], planes: int, effort: float
) -> NDArray[np.int64]:
    """Numbers plane * d + i of the runs that a query reads: those of largest |q_i * spread_i| / 16^plane, best first.

    Of equal ones the lower number comes first. Their count is effort * planes * d, rounded, and at least 1.
    """
    weights = query * spread
    sizes = np.abs(np.concatenate([weights / 16.0**plane for plane in range(planes)]))
    count = len(sizes) if effort >= 1 else max(int(np.rint(effort * len(sizes))), 1)
    return np.lexsort((np.arange(len(sizes)), -sizes))[:count]


def exact_scores(vectors: NDArray[np.float64], query: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Inner products, cosines or squared distances of all vectors (n, d) with one query."""
    result: NDArray[np.float64] = vectors @ query
    if metric == "l2":
        result = np.square(vectors - query).sum(axis=1)
    if metric == "cosine":
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        result = np.divide(result, lengths, out=np.zeros_like(result), where=lengths > 0)
    return result


def best(scores: NDArray[np.float64], k: int, metric: str) -> NDArray[np.int64]:
    """Ids of the k best scores, ties by the lower id."""
    order = scores if metric == "l2" else -scores
    return np.lexsort((np.arange(len(order)), order))[:k]
