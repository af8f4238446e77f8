"""Causal grouped-query attention in float64 NumPy, one row and M rows. Projections and rotation are elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from specdec.kernels.reference.layers import softcap


def first_visible(position: int, window: int | None) -> int:
    """First key position that a query at `position` sees: 0, or position - window + 1 with a sliding window."""
    return 0 if window is None else max(0, position - window + 1)


def attention_row(
    query: NDArray[np.floating],
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    *,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
    sinks: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Attention of the newest position over its history, itself included.

    Args:
        query: (H, D), already rotated.
        keys: (K, T, D), rotated; the query's own position is T - 1. H is a multiple of K.
        values: (K, T, D).
        window: how many positions back it sees, its own included; None means all.
        scale: of scores; None is 1 / sqrt(D).
        cap: scaled scores become cap * tanh(score / cap); None leaves them.
        sinks: (H,), a score of every head that takes part in the softmax and has no value, or None.

    Returns:
        (H, D) float64: softmax(q k^T * scale) v, query head h using key-value head h // (H / K).

    Source: Vaswani et al. 1706.03762, section 3.2.1; grouped queries: Ainslie et al. 2305.13245, section 2; caps:
    Gemma 2, 2408.00118, section 2; sinks: gpt-oss, 2508.10925.
    """
    heads, size = query.shape
    kv_heads, length, _ = keys.shape
    start = first_visible(length - 1, window)
    grouped = query.astype(np.float64).reshape(kv_heads, heads // kv_heads, size)
    scores = grouped @ keys[:, start:].astype(np.float64).transpose(0, 2, 1)
    scores = softcap(scores / np.sqrt(size) if scale is None else scores * scale, cap)
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        lone = sinks.astype(np.float64).reshape(kv_heads, heads // kv_heads, 1)
        top = np.maximum(top, lone)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= total if sinks is None else total + np.exp(lone - top)
    return np.asarray(weights @ values[:, start:].astype(np.float64)).reshape(heads, size)


def attention_rows(
    queries: NDArray[np.floating],
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    *,
    window: int | None = None,
    scales: NDArray[np.floating] | None = None,
    cap: float | None = None,
    sinks: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Attention of the last M positions, each over its own history alone.

    Args:
        queries: (M, H, D); row m stands at position T - M + m.
        keys: (K, T, D), the M new positions included.
        values: (K, T, D).
        window: sliding window, or None.
        scales: (M,), `scale` of every row, or None.
        cap, sinks: see `attention_row`.

    Returns:
        (M, H, D) float64; row m equals `attention_row` on that row's history, bit for bit.
    """
    rows, length = len(queries), keys.shape[1]
    return np.stack(
        [
            attention_row(
                queries[m],
                keys[:, : length - rows + m + 1],
                values[:, : length - rows + m + 1],
                window=window,
                scale=None if scales is None else float(scales[m]),
                cap=cap,
                sinks=sinks,
            )
            for m in range(rows)
        ]
    )
