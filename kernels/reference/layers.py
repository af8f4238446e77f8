"""The small layers of a transformer block in float64 NumPy: norm, rotary positions, gating.

Attention is in `attention`, the choice of experts in `experts`, matrices in `bucketmul`, the whole model in
`transformer`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from specdec.model.architecture import ModelConfig
from specdec.model.layers import CLAMP_LIMIT, CLAMP_SLOPE, Activation, RopeKind


def rms_norm(
    x: NDArray[np.floating], weight: NDArray[np.floating], *, eps: float, offset: float = 0.0
) -> NDArray[np.float64]:
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last axis.

    Source: Zhang and Sennrich, 1910.07467, equation 4; the offset is Gemma's (2403.08295).
    """
    x = x.astype(np.float64)
    scale = weight.astype(np.float64) + offset
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale)


def softcap(x: NDArray[np.floating], cap: float | None) -> NDArray[np.float64]:
    """cap * tanh(x / cap), or x where `cap` is None. Source: Gemma 2, 2408.00118, section 2."""
    wide = np.asarray(x, np.float64)
    return wide if cap is None else np.asarray(cap * np.tanh(wide / cap))


def rotary_frequencies(config: ModelConfig, layer: int = 0) -> NDArray[np.float64]:
    """(R / 2,) radians per position of a layer: theta^(-2j / R), divided by `Rope.factors` where there are any.

    R is the number of turned dimensions, `Attention.turned`; a layer without positions has none.

    Source: Su et al. 2104.09864, section 3.2.2.
    """
    attention = config.layers[layer].attention
    half, rope = attention.turned // 2, attention.rope
    if not half:
        return np.zeros(0)
    frequencies = rope.theta ** (-np.arange(half, dtype=np.float64) / half)
    return frequencies if rope.factors is None else frequencies / np.asarray(rope.factors)


def rotations(
    positions: NDArray[np.integer], frequencies: NDArray[np.float64], *, factor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines, (T, R / 2) each, of every position's angles, times `Rope.attention_factor`.

    Args:
        positions: (T,), from 0.
        frequencies: (R / 2,), see `rotary_frequencies`.
        factor: 1 but for rotary positions that are scaled (YaRN, 2309.00071, section 3.4).
    """
    angles = positions[:, None] * frequencies
    return np.cos(angles) * factor, np.sin(angles) * factor


def rotate(
    x: NDArray[np.floating], cosines: NDArray[np.float64], sines: NDArray[np.float64], *, kind: RopeKind = "half"
) -> NDArray[np.float64]:
    """Turn the first R dimensions of every head, pair j by angle j; the others stay.

    Args:
        x: (..., D).
        cosines, sines: of the angles, broadcastable to (..., R / 2).
        kind: pair j is dimensions j and j + R / 2 ("half"), or 2j and 2j + 1 ("interleaved"); "none" turns nothing.
    """
    wide = np.asarray(x, np.float64)
    turned = 2 * cosines.shape[-1]
    if kind == "none" or not turned:
        return wide
    part, rest = wide[..., :turned], wide[..., turned:]
    if kind == "interleaved":
        low, high = part[..., 0::2], part[..., 1::2]
        pairs = np.stack([low * cosines - high * sines, high * cosines + low * sines], axis=-1)
        return np.concatenate([pairs.reshape(part.shape), rest], axis=-1)
    low, high = np.split(part, 2, axis=-1)
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines, rest], axis=-1)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


def gated(
    gate: NDArray[np.floating], up: NDArray[np.floating], *, activation: Activation = "silu"
) -> NDArray[np.float64]:
    """The gate's activation times `up`.

    Source: Shazeer, 2002.05202, section 2 (SwiGLU, and GEGLU with the tanh form of 1606.08415); for the clamped SwiGLU
    see `CLAMP_LIMIT`.
    """
    wide, other = np.asarray(gate, np.float64), np.asarray(up, np.float64)
    if activation == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return np.asarray(0.5 * wide * (1 + np.tanh(inner)) * other)
    if activation == "clamped_swiglu":
        wide, other = np.minimum(wide, CLAMP_LIMIT), np.clip(other, -CLAMP_LIMIT, CLAMP_LIMIT)
        return np.asarray(wide * _sigmoid(CLAMP_SLOPE * wide) * (other + 1))
    return np.asarray(wide * _sigmoid(wide) * other)
