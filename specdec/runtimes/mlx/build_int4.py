"""The `int4` view made on the device: levels and scales bit for bit those of `specdec.weights.int4`.

The arithmetic is that module's, operation for operation and in the same order of sums; none of it is compiled into
one kernel, which could fuse a product with the sum that follows it. Scores are float32 sums here: equal to rounding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from specdec.weights.int4 import DIVISORS, GROUP, LARGEST_SCALE

_SLICE_WEIGHTS = 1 << 24  # that are rounded at a time


class DeviceInt4(NamedTuple):
    """A matrix rounded to 4 bits, on the device.

    Attributes:
        levels: uint8 (in, out), 0 to 15: a level plus 8.
        scales: float16 (ceil(in / 32), out).
        scores: float32 (in, 1): mean |weight| of the rounded weights.
    """

    levels: Any
    scales: Any
    scores: Any


def build_int4(mx: Any, bits: Any, dtype: str) -> DeviceInt4:
    """Round a matrix.

    Args:
        mx: MLX.
        bits: raw bits, uint16 (in, out).
        dtype: "float16" or "bfloat16", of the bits.
    """
    inputs, outputs = bits.shape
    step = max(1, _SLICE_WEIGHTS // (GROUP * outputs)) * GROUP
    parts = []
    for first in range(0, inputs, step):
        part = bits[first : first + step].view(mx.float16 if dtype == "float16" else mx.bfloat16).astype(mx.float32)
        count = part.shape[0]
        if count % GROUP:
            part = mx.pad(part, [(0, GROUP - count % GROUP), (0, 0)])
        levels, scale = _quantise(mx, part.reshape(-1, GROUP, outputs))
        rounded = mx.abs(levels * scale[:, None]).reshape(-1, outputs)[:count]
        whole = (levels.reshape(-1, outputs)[:count] + 8).astype(mx.uint8)
        parts.append(DeviceInt4(whole, scale.astype(mx.float16), mx.mean(rounded, axis=1, keepdims=True)))
        mx.eval(parts[-1])
    if len(parts) == 1:
        return parts[0]
    return DeviceInt4(*(mx.concatenate(list(arrays), axis=0) for arrays in zip(*parts, strict=True)))


def _quantise(mx: Any, weights: Any) -> tuple[Any, Any]:
    """Levels, float32 whole numbers (groups, 32, out), and scales, float32 (groups, out), of float16 precision."""
    low, high = mx.min(weights, axis=1), mx.max(weights, axis=1)
    extreme = mx.where(high >= -low, high, low)
    zero = mx.zeros((), dtype=mx.float32)

    def divided(above: Any, below: Any) -> Any:
        """The quotient, 0 where there is none."""
        fits = below != 0
        return mx.where(fits, above / mx.where(fits, below, 1.0), zero)

    def levels_of(scale: Any) -> Any:
        return mx.clip(mx.round(weights * divided(mx.ones_like(scale), scale)[:, None]), -8.0, 7.0)

    def error_of(scale: Any) -> Any:
        difference = levels_of(scale) * scale[:, None] - weights
        return _sum_products(difference, difference)

    best_scale = _stored(mx, extreme / DIVISORS[0])
    best_error = error_of(best_scale)

    def consider(scale: Any) -> None:
        nonlocal best_scale, best_error
        error = error_of(scale)
        better = error < best_error
        best_scale, best_error = mx.where(better, scale, best_scale), mx.where(better, error, best_error)

    for divisor in DIVISORS[1:]:
        consider(_stored(mx, extreme / divisor))
    levels = levels_of(best_scale)
    consider(_stored(mx, divided(_sum_products(levels, weights), _sum_products(levels, levels))))
    return levels_of(best_scale), best_scale


def _sum_products(left: Any, right: Any) -> Any:
    """Sum of products over the inputs of a group, input after input: (groups, 32, out) twice to (groups, out)."""
    products = left * right
    total = products[:, 0]
    for place in range(1, GROUP):
        total = total + products[:, place]
    return total


def _stored(mx: Any, scale: Any) -> Any:
    """`scale` as float16 keeps it."""
    return mx.clip(scale, -LARGEST_SCALE, LARGEST_SCALE).astype(mx.float16).astype(mx.float32)
