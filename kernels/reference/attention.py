"""Causal grouped-query attention in float64 NumPy, one row and M rows. Projections and rotation are elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_visible(position: int, window: int | None) -> int:
    """First key position that a query at `position` sees: 0, or position - window + 1 with a sliding window."""
    return 0 if window is None else max(0, position - window + 1)


def attention_row(
    query: NDArray[np.floating], keys: NDArray[np.floating], values: NDArray[np.floating], *, window: int | None = None
) -> NDArray[np.float64]:
    """Attention of the newest position over its history, itself included.

    Args:
        query: (H, D), already rotated.
        keys: (K, T, D), rotated; the query's own position is T - 1. H is a multiple of K.
        values: (K, T, D).
        window: how many positions back it sees, its own included; None means all.

    Returns:
        (H, D) float64: softmax(q k^T / sqrt(D)) v, query head h using key-value head h // (H / K).

    Source: Vaswani et al. 1706.03762, section 3.2.1; grouped queries: Ainslie et al. 2305.13245, section 2.
    """
    heads, size = query.shape
    kv_heads, length, _ = keys.shape
    start = first_visible(length - 1, window)
    grouped = query.astype(np.float64).reshape(kv_heads, heads // kv_heads, size)
    scores = grouped @ keys[:, start:].astype(np.float64).transpose(0, 2, 1) / np.sqrt(size)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights @ values[:, start:].astype(np.float64)).reshape(heads, size)


def attention_rows(
    queries: NDArray[np.floating],
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    *,
    window: int | None = None,
) -> NDArray[np.float64]:
    """Attention of the last M positions, each over its own history alone.

    Args:
        queries: (M, H, D); row m stands at position T - M + m.
        keys: (K, T, D), the M new positions included.
        values: (K, T, D).
        window: sliding window, or None.

    Returns:
        (M, H, D) float64; row m equals `attention_row` on that row's history, bit for bit.
    """
    rows, length = len(queries), keys.shape[1]
    return np.stack(
        [
            attention_row(
                queries[m], keys[:, : length - rows + m + 1], values[:, : length - rows + m + 1], window=window
            )
            for m in range(rows)
        ]
    )
