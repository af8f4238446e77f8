"""The small layers of a transformer block in float64 NumPy: norm, rotary positions, gating, expert choice.

Attention is in `attention`, matrices in `bucketmul`, the whole model in `transformer`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdec.model.architecture import ModelConfig


def rms_norm(x: NDArray[np.floating], weight: NDArray[np.floating], *, eps: float) -> NDArray[np.float64]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Source: Zhang and Sennrich, 1910.07467, equation 4."""
    x = x.astype(np.float64)
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight)


def rotary_frequencies(config: ModelConfig, layer: int = 0) -> NDArray[np.float64]:
    """(D / 2,) radians per position of a layer: theta^(-2j / D), divided by `Rope.factors` where there are any.

    Source: Su et al. 2104.09864, section 3.2.2.
    """
    attention = config.layers[layer].attention
    half, rope = attention.head_dim // 2, attention.rope
    frequencies = rope.theta ** (-np.arange(half, dtype=np.float64) / half)
    return frequencies if rope.factors is None else frequencies / np.asarray(rope.factors)


def rotations(
    positions: NDArray[np.integer], frequencies: NDArray[np.float64], *, factor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines, (T, D / 2) each, of every position's angles, times `Rope.attention_factor`.

    Args:
        positions: (T,), from 0.
        frequencies: (D / 2,), see `rotary_frequencies`.
        factor: 1 but for rotary positions that are scaled (YaRN, 2309.00071, section 3.4).
    """
    angles = positions[:, None] * frequencies
    return np.cos(angles) * factor, np.sin(angles) * factor


def rotate(x: NDArray[np.floating], cosines: NDArray[np.float64], sines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn dimension j and j + D / 2 of every head by angle j.

    Args:
        x: (..., D).
        cosines, sines: of the angles, broadcastable to (..., D / 2).
    """
    low, high = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines], axis=-1)


def gated(gate: NDArray[np.floating], up: NDArray[np.floating]) -> NDArray[np.float64]:
    """silu(gate) * up. Source: Shazeer, 2002.05202, section 2 (SwiGLU)."""
    gate = gate.astype(np.float64)
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


def choose_experts(router_logits: NDArray[np.floating], count: int) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
    """The `count` experts of one token and their weights, by rising expert number.

    Args:
        router_logits: (experts,), any float dtype.
        count: experts per token; of equal logits the lower number is taken.

    Returns:
        Expert numbers (count,), and the softmax over the chosen logits alone (count,), in the dtype of the logits.

    Source: Mixtral, Jiang et al. 2401.04088, section 2.1.
    """
    chosen = np.sort(np.argsort(-router_logits, kind="stable")[:count])
    weights = np.exp(router_logits[chosen] - router_logits.max())
    return chosen, weights / weights.sum()
