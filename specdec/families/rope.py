"""The arithmetic of rotary scaling rules: divisors of the inverse frequencies, and what multiplies sines and cosines.

Reading the rules from files is for `rope_huggingface` and `rope_gguf`. Rules that depend on the context are in
`specdec.model.rope_scaling`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specdec.errors import ModelFormatError
from specdec.model.bounds import MOST_CONTEXT
from specdec.model.layers import Rope

MAX_HEAD_DIM = 1 << 16  # far above any model; a damaged number must not make a list of billions


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeRule:
    """What a file says about the rotary positions of a kind of layer.

    Attributes:
        rope: of the layers, for `max_context`.
        max_context: tokens of the context that the model is loaded for by default.
        longest_context: tokens of the longest context that it can be loaded for.
    """

    rope: Rope
    max_context: int
    longest_context: int

    def with_rope(self, **values: Any) -> RopeRule:
        """The same with these attributes of `rope`."""
        return replace(self, rope=replace(self.rope, **values))

    def contexts(self) -> dict[str, Any]:
        """Arguments of `ModelConfig`."""
        longest = None if self.longest_context == self.max_context else self.longest_context
        return {"max_context": self.max_context, "longest_context": longest}


def linear_factors(factor: float, head_dim: int) -> tuple[float, ...]:
    """Position interpolation (Chen et al., 2306.15595): every frequency divided by the same number."""
    check_head_dim(head_dim)
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
    check_head_dim(head_dim)
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = original_context * inverse / (2 * math.pi)
    kept = np.clip((turns - low_freq) / (high_freq - low_freq), 0.0, 1.0)
    return tuple(float(x) for x in 1.0 / (kept + (1.0 - kept) / factor))


def yarn_factors(
    *,
    theta: float,
    head_dim: int,
    factor: float,
    original_context: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    extrapolation: float = 1.0,
) -> tuple[float, ...]:
    """Divisors of YaRN (Peng et al., 2309.00071, section 3.2, "NTK-by-parts").

    Pairs of dimensions that turn more than `beta_fast` times over the original context keep their frequency, those that
    turn less than `beta_slow` times have it divided by `factor`; between them the frequency is interpolated linearly in
    the number of the pair.

    Args:
        theta: base of the rotary frequencies, above 1.
        head_dim: D.
        factor: largest divisor.
        original_context: tokens of the context before scaling.
        beta_fast: turns above which nothing changes.
        beta_slow: turns below which the whole factor applies.
        truncate: the borders between pairs are rounded outwards to whole numbers.
        extrapolation: share of the rule that applies, 0 to 1; 0 is position interpolation.

    Returns:
        D/2 divisors, computed in float64.

    Raises:
        ModelFormatError: `theta` is not above 1.
    """
    check_head_dim(head_dim)
    if theta <= 1:
        raise ModelFormatError(f"rope_theta must be above 1 with YaRN, not {theta:g}")

    def border(turns: float) -> float:
        return head_dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    try:
        low, high = border(beta_fast), border(beta_slow)
        if truncate:
            low, high = float(math.floor(low)), float(math.ceil(high))
    except (OverflowError, ValueError, ZeroDivisionError):
        raise ModelFormatError(
            f"YaRN's numbers are out of range: {original_context:g} tokens, {beta_fast:g} and {beta_slow:g} turns"
        ) from None
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    width = high - low or 0.001
    with np.errstate(all="ignore"):  # `Rope` refuses what is not a number
        kept = (1.0 - np.clip((np.arange(head_dim // 2, dtype=np.float64) - low) / width, 0.0, 1.0)) * extrapolation
        return tuple(float(x) for x in 1.0 / (kept + (1.0 - kept) / factor))


def yarn_attention(factor: float, multiplier: float = 1.0) -> float:
    """What multiplies sines and cosines with YaRN, 2309.00071, equation 22: 0.1 * multiplier * ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def longrope_attention(factor: float, original_context: int) -> float:
    """The same with LongRoPE (2402.13753, and Phi-3's reference code): sqrt(1 + ln(factor) / ln(original context))."""
    if factor <= 1 or original_context <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_context))


def longest(max_context: int, original_context: float, factor: float) -> int:
    """The longest context of a model whose original one is stretched by `factor`."""
    return max(max_context, int(min(original_context * factor, MOST_CONTEXT)))


def check_head_dim(head_dim: int) -> None:
    """Refuse a head size that would make senselessly many factors."""
    if not 0 < head_dim <= MAX_HEAD_DIM:
        raise ModelFormatError(f"the head size must be 1 to {MAX_HEAD_DIM}, not {head_dim}")
