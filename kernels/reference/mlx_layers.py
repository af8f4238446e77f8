"""The small layers of a transformer block in plain MLX operations, one row at a time, float32.

One row at a time because the vector and the scalar path of an elementwise operation may round differently, and which
elements meet which path would depend on the number of rows. Every shape here follows from the model and from the row's
own position, so a row's bits do too. The float64 counterparts are `layers` and `attention`.
"""

from __future__ import annotations

import math
from typing import Any

from specdec.kernels.reference.mlx_backend import mx

from specdec.model.layers import CLAMP_LIMIT, CLAMP_SLOPE, Activation, RopeKind


def rms_norm(x: Any, weight: Any, *, eps: float) -> Any:
    """RMS norm over the last axis of x (..., n) with weight (n,). Source: 1910.07467, equation 4."""
    return x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def softcap(x: Any, cap: float | None) -> Any:
    """cap * tanh(x / cap), or x where `cap` is None."""
    return x if cap is None else cap * mx.tanh(x / cap)


def rotate(x: Any, cos: Any, sin: Any, *, kind: RopeKind = "half") -> Any:
    """Rotary position of one row: x (heads, D), cos and sin (R / 2,); see `layers.rotate`."""
    turned = 2 * cos.shape[-1]
    if kind == "none" or not turned:
        return x
    part = x[:, :turned]
    if kind == "interleaved":
        low, high = part[:, 0::2], part[:, 1::2]
        found = mx.stack([low * cos - high * sin, high * cos + low * sin], axis=-1).reshape(part.shape)
    else:
        low, high = mx.split(part, 2, axis=-1)
        found = mx.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return found if turned == x.shape[1] else mx.concatenate([found, x[:, turned:]], axis=-1)


def attend(
    query: Any, keys: Any, values: Any, *, scale: float | None = None, cap: float | None = None, sinks: Any = None
) -> Any:
    """Grouped-query attention of one row over the history it sees.

    Args:
        query: (H, D), rotated.
        keys: (K, T, D), rotated, exactly the positions that the row sees.
        values: (K, T, D).
        scale: of scores; None is 1 / sqrt(D).
        cap: of scores, or None.
        sinks: (H,), a score of every head that has no value, or None.

    Returns:
        (1, H * D).
    """
    kv_heads, _, size = keys.shape
    grouped = query.reshape(kv_heads, -1, size) * (1.0 / math.sqrt(size) if scale is None else scale)
    scores = softcap(grouped @ keys.swapaxes(1, 2), cap)
    if sinks is None:
        weights = mx.softmax(scores, axis=-1)
    else:
        lone = sinks.reshape(kv_heads, -1, 1)
        weights = mx.softmax(mx.concatenate([scores, lone], axis=-1), axis=-1)[..., :-1]
    return (weights @ values).reshape(1, -1)


def gated(gate: Any, up: Any, *, activation: Activation = "silu") -> Any:
    """The gate's activation times `up`; see `layers.gated`."""
    if activation == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
        return 0.5 * gate * (1 + mx.tanh(inner)) * up
    if activation == "clamped_swiglu":
        gate, up = mx.minimum(gate, CLAMP_LIMIT), mx.clip(up, -CLAMP_LIMIT, CLAMP_LIMIT)
        return gate * mx.sigmoid(CLAMP_SLOPE * gate) * (up + 1)
    return gate * mx.sigmoid(gate) * up
