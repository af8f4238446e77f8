"""The small layers of a transformer block in plain MLX operations, one row at a time, float32.

One row at a time because the vector and the scalar path of an elementwise operation may round differently, and which
elements meet which path would depend on the number of rows. Every shape here follows from the model and from the row's
own position, so a row's bits do too. The float64 counterparts are `layers` and `attention`.
"""

from __future__ import annotations

import math
from typing import Any

from specdec.kernels.reference.mlx_backend import mx


def rms_norm(x: Any, weight: Any, *, eps: float) -> Any:
    """RMS norm over the last axis of x (..., n) with weight (n,). Source: 1910.07467, equation 4."""
    return x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary position of one row: x (heads, D), cos and sin (D / 2,); dimension j pairs with j + D / 2."""
    low, high = mx.split(x, 2, axis=-1)
    return mx.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attend(query: Any, keys: Any, values: Any) -> Any:
    """Grouped-query attention of one row over the history it sees.

    Args:
        query: (H, D), rotated.
        keys: (K, T, D), rotated, exactly the positions that the row sees.
        values: (K, T, D).

    Returns:
        (1, H * D).
    """
    kv_heads, _, size = keys.shape
    grouped = query.reshape(kv_heads, -1, size) * (1.0 / math.sqrt(size))
    weights = mx.softmax(grouped @ keys.swapaxes(1, 2), axis=-1)
    return (weights @ values).reshape(1, -1)


def gated(gate: Any, up: Any) -> Any:
    """silu(gate) * up. Source: 2002.05202, section 2."""
    return gate * mx.sigmoid(gate) * up
