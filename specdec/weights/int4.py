"""The int4 draft view: symmetric 4-bit weights, a scale per group of 32 inputs, one tier per input.

Effort chooses whole inputs here. A weight is `scale[i // 32, o] * (q - 8)`; the scale of a group is the one of several
candidates that leaves the least squared error, refitted once by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.weights.base import TensorSpec, View, ViewMatrix
from specdec.weights.quantised import ExactMatrix

GROUP = 32

# Divisors of the weight of largest magnitude, sign kept. -8 puts it on the one level that only one sign has; the
# larger divisors shrink the grid and clip the extreme, which pays when it stands alone. Chosen on real matrices: more
# candidates lower the squared error by under 1 %.
DIVISORS = (-8.0, -7.0, -8.5, -9.25, 7.5)

LARGEST_SCALE = np.float32(65504)
_CHUNK_WEIGHTS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Int4Matrix:
    """A matrix of shape (out, in) rounded to 4 bits.

    Attributes:
        shape: (out, in).
        q: uint8 (in, ceil(out / 2)): output 2j in the low nibble, 2j + 1 in the high one, each level + 8 (0 to 15).
            With an odd `out` the last high nibble is 8, level 0.
        scale: float16 (ceil(in / 32), out); may be negative.
        scores: float32 (in, 1): mean |dequantised w| over the outputs.
    """

    shape: tuple[int, int]
    q: np.ndarray
    scale: np.ndarray
    scores: np.ndarray

    @property
    def tier_sizes(self) -> tuple[int, ...]:
        """One tier: an input is taken whole or not at all."""
        return (1,)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, scores included."""
        return self.q.nbytes + self.scale.nbytes + self.scores.nbytes

    def levels(self) -> np.ndarray:
        """The 4-bit levels, int8 (in, out), -8 to 7."""
        inputs = self.shape[1]
        pairs = np.empty((inputs, self.q.shape[1], 2), dtype=np.int8)
        pairs[..., 0] = self.q & 15
        pairs[..., 1] = self.q >> 4
        levels: np.ndarray = pairs.reshape(inputs, -1)[:, : self.shape[0]] - np.int8(8)
        return levels

    def dequantise(self) -> np.ndarray:
        """The weights that this view multiplies by, float32 (out, in); each is one float32 product, exact."""
        scale = np.repeat(self.scale.astype(np.float32), GROUP, axis=0)[: self.shape[1]]
        return np.ascontiguousarray((self.levels() * scale).T)

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of nibbles and scales that one multiplication reads; a group's scales once.

        Args:
            prefix: integer (in,), 1 for an input that is taken, else 0.
        """
        taken = np.flatnonzero(prefix)
        return int(taken.size * self.q.shape[1]) + int(np.unique(taken // GROUP).size) * 2 * self.shape[0]


def _quantise(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels, float32 whole numbers (groups, 32, out), and scales, float32 (groups, out), of float16 precision."""
    low, high = weights.min(axis=1), weights.max(axis=1)
    extreme = np.where(high >= -low, high, low)
    scratch = np.empty_like(weights)

    def levels_of(scale: np.ndarray, into: np.ndarray) -> None:
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        np.multiply(weights, inverse[:, None], out=into)
        np.clip(np.rint(into, out=into), -8, 7, out=into)

    def error_of(scale: np.ndarray) -> np.ndarray:
        levels_of(scale, scratch)
        np.multiply(scratch, scale[:, None], out=scratch)
        np.subtract(scratch, weights, out=scratch)
        return _sum_products(scratch, scratch)

    best_scale = _stored(extreme / np.float32(DIVISORS[0]))
    best_error = error_of(best_scale)

    def consider(scale: np.ndarray) -> None:
        nonlocal best_scale, best_error
        error = error_of(scale)
        better = error < best_error
        best_scale, best_error = np.where(better, scale, best_scale), np.where(better, error, best_error)

    for divisor in DIVISORS[1:]:
        consider(_stored(extreme / np.float32(divisor)))
    levels = np.empty_like(weights)
    levels_of(best_scale, levels)
    power = _sum_products(levels, levels)
    fitted = np.divide(_sum_products(levels, weights), power, out=np.zeros_like(power), where=power > 0)
    consider(_stored(fitted))
    levels_of(best_scale, levels)
    return levels, best_scale


def _sum_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sum of products over the inputs of a group: (groups, 32, out) twice to (groups, out)."""
    total: np.ndarray = np.einsum("gio,gio->go", left, right)
    return total


def _stored(scale: np.ndarray) -> np.ndarray:
    """`scale` as float16 keeps it, so that the errors compared are those of the stored numbers."""
    kept: np.ndarray = np.clip(scale, -LARGEST_SCALE, LARGEST_SCALE).astype(np.float16).astype(np.float32)
    return kept


class Int4View(View):
    """4-bit weights with group scales."""

    name = "int4"
    input_group = GROUP

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """`scale`, `q` and `scores`, as `Int4Matrix` has them."""
        outputs, inputs = shape
        return {
            "scale": TensorSpec("F16", (-(-inputs // GROUP), outputs)),
            "q": TensorSpec("U8", (inputs, -(-outputs // 2))),
            "scores": TensorSpec("F32", (inputs, 1)),
        }

    def build(self, matrix: ExactMatrix) -> Int4Matrix:
        """Round an exact matrix."""
        outputs, inputs = matrix.shape
        q = np.empty((inputs, -(-outputs // 2)), dtype=np.uint8)
        scale = np.empty((-(-inputs // GROUP), outputs), dtype=np.float16)
        scores = np.empty((inputs, 1), dtype=np.float32)
        step = max(1, _CHUNK_WEIGHTS // (GROUP * outputs))
        for first in range(0, len(scale), step):
            groups = min(step, len(scale) - first)
            start, stop = first * GROUP, min((first + groups) * GROUP, inputs)
            weights = np.zeros((groups * GROUP, outputs), dtype=np.float32)
            weights[: stop - start] = matrix.inputs_float32(start, stop)
            levels, scales = _quantise(weights.reshape(groups, GROUP, outputs))
            scale[first : first + groups] = scales
            nibbles = np.full((stop - start, q.shape[1] * 2), 8, dtype=np.uint8)
            nibbles[:, :outputs] = levels.reshape(-1, outputs)[: stop - start] + 8
            q[start:stop] = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
            np.multiply(levels, scales[:, None], out=levels)
            np.abs(levels, out=levels)
            scores[start:stop, 0] = levels.reshape(-1, outputs)[: stop - start].mean(axis=1, dtype=np.float64)
        return Int4Matrix(matrix.shape, q, scale, scores)

    def arrays(self, matrix: ViewMatrix) -> dict[str, np.ndarray]:
        """The three arrays."""
        if not isinstance(matrix, Int4Matrix):
            raise InvalidArgumentError(f"view 'int4' stores an Int4Matrix, not a {type(matrix).__name__}")
        return {"scale": matrix.scale, "q": matrix.q, "scores": matrix.scores}

    def load(self, arrays: Mapping[str, np.ndarray], exact: ExactMatrix) -> Int4Matrix:
        """From stored arrays."""
        self.check_arrays(arrays, exact.shape)
        return Int4Matrix(exact.shape, arrays["q"], arrays["scale"], arrays["scores"])
