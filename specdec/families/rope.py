"""Rotary scaling rules of model files, turned into divisors of the inverse frequencies."""

from __future__ import annotations

import math

import numpy as np

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields

SUPPORTED = ("default", "linear", "llama3")
MAX_HEAD_DIM = 1 << 16  # far above any model; a damaged number must not make a list of billions


def linear_factors(factor: float, head_dim: int) -> tuple[float, ...]:
    """Position interpolation (Chen et al., 2306.15595): every frequency divided by the same number."""
    _check(head_dim)
    return (float(factor),) * (head_dim // 2)


def llama3_factors(
    *, theta: float, head_dim: int, factor: float, low_freq: float, high_freq: float, original_context: int
) -> tuple[float, ...]:
    """Divisors of Llama 3.1 (The Llama 3 Herd of Models, 2407.21783, and the model's reference code).

    Wavelengths shorter than `original_context / high_freq` tokens keep their frequency, those longer than
    `original_context / low_freq` have it divided by `factor`; between them the frequency (not the divisor) is
    interpolated linearly in the number of turns over the original context.

    Args:
        theta: base of the rotary frequencies.
        head_dim: D.
        factor: largest divisor.
        low_freq: turns over the original context up to which the whole factor applies.
        high_freq: turns from which nothing changes; above `low_freq`.
        original_context: tokens of the context before scaling.

    Returns:
        D/2 divisors, computed in float64.
    """
    _check(head_dim)
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = original_context * inverse / (2 * math.pi)
    kept = np.clip((turns - low_freq) / (high_freq - low_freq), 0.0, 1.0)
    return tuple(float(x) for x in 1.0 / (kept + (1.0 - kept) / factor))


def factors_from(fields: Fields, *, theta: float, head_dim: int) -> tuple[float, ...] | None:
    """Divisors from a Hugging Face `rope_parameters` or `rope_scaling` mapping; None when nothing is scaled.

    Raises:
        ModelFormatError: the rule is not supported, or a number of it is missing or senseless.
    """
    rule = fields.text("rope_type", fields.text("type", "default"))
    if rule == "default":
        return None
    if rule == "linear":
        return linear_factors(fields.number("factor"), head_dim)
    if rule != "llama3":
        raise ModelFormatError(f"{fields.where}: rotary scaling {rule!r} is not supported, only {', '.join(SUPPORTED)}")
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if low >= high:
        raise ModelFormatError(f"{fields.where}: low_freq_factor {low} must be below high_freq_factor {high}")
    return llama3_factors(
        theta=theta,
        head_dim=head_dim,
        factor=fields.number("factor"),
        low_freq=low,
        high_freq=high,
        original_context=fields.integer("original_max_position_embeddings"),
    )


def _check(head_dim: int) -> None:
    if not 0 < head_dim <= MAX_HEAD_DIM:
        raise ModelFormatError(f"the head size must be 1 to {MAX_HEAD_DIM}, not {head_dim}")
