"""The bucket8 draft view: 8-bit weights with a scale per input, in buckets of 64 outputs and four tiers of 16.

The buckets are its own, whatever the store's exact view has: a mask of 64 bits per 16 weights costs as much as one of
16 bits per 4, wider buckets rank better, and a tier of a bucket is one vector register's work. Tiers and masks come
from the exact weights; a weight is then `step[i] * q`, with step[i] the largest |w| of input i over 127. That leaves an
error of about 1 % of the weights; the upper byte of a float16, which would need no scale, leaves 5.4 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.weights.base import TensorSpec, View, ViewMatrix
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import from_float32, to_float32
from specdec.weights.layout import BucketLayout
from specdec.weights.quantised import ExactMatrix

LAYOUT = BucketLayout(64, (16, 16, 16, 16))
_LEVELS = np.float32(127)


@dataclass(frozen=True, slots=True, eq=False)
class Bucket8Matrix:
    """A matrix of shape (out, in) rounded to 8 bits, in buckets and tiers.

    Attributes:
        shape: (out, in).
        values: tier k: int8 (in, buckets, 16), levels in ascending order of output within a bucket; outputs past `out`
            in the last bucket are padding of level 0.
        masks: tiers 0..2: uint8 (in, buckets, 8), as `BucketedMatrix` has them; the last tier holds what no other does.
        step: float32 (in,): a weight is step[i] * level, one float32 product.
        scores: float32 (in, 4): s(i, k), mean |w| of the exact weights of tier k.
    """

    shape: tuple[int, int]
    values: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    step: np.ndarray
    scores: np.ndarray

    @property
    def tier_sizes(self) -> tuple[int, ...]:
        """Weights per tier of a bucket."""
        return LAYOUT.tier_sizes

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, scores included."""
        return sum(array.nbytes for array in (*self.values, *self.masks, self.step, self.scores))

    def levels(self) -> np.ndarray:
        """The 8-bit levels, int8 (in, out)."""
        tiers = self.tier_of_weight().reshape(*self.values[0].shape[:2], LAYOUT.bucket_size)
        levels = np.empty(tiers.shape, dtype=np.int8)
        for k, values in enumerate(self.values):
            levels[tiers == k] = values.reshape(-1)
        return levels.reshape(len(levels), -1)[:, : self.shape[0]]

    def dequantise(self) -> np.ndarray:
        """The weights that this view multiplies by, float32 (out, in)."""
        return np.ascontiguousarray((self.levels() * self.step[:, None]).T)

    def tier_of_weight(self) -> np.ndarray:
        """Tier of every weight, uint8 (in, buckets * 64); padded outputs come last."""
        inputs, buckets = self.values[0].shape[:2]
        tier = np.full((inputs, buckets, LAYOUT.bucket_size), LAYOUT.num_tiers - 1, dtype=np.uint8)
        for k, mask in enumerate(self.masks):
            tier[np.unpackbits(mask, axis=-1, bitorder="little").view(bool)] = k
        return tier.reshape(inputs, -1)

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of values, masks and steps that one multiplication reads.

        Args:
            prefix: integer (in,), tiers n(i) taken of each input, 0 to 4.
        """
        taken = np.asarray(prefix, dtype=np.int64)
        values = int(taken.sum()) * LAYOUT.tier_sizes[0]
        masks = int(np.minimum(taken, LAYOUT.num_tiers - 1).sum()) * LAYOUT.mask_bytes
        buckets = int(self.values[0].shape[1])
        return (values + masks) * buckets + 4 * int(np.count_nonzero(taken))


class Bucket8View(View):
    """8-bit weights in buckets and tiers."""

    name = "bucket8"

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """`tier0.values`, `tier0.mask`, …, `step` and `scores`, as `Bucket8Matrix` has them; the store's own layout
        plays no part."""
        outputs, inputs = shape
        buckets = LAYOUT.buckets(outputs)
        specs = {}
        for k, size in enumerate(LAYOUT.tier_sizes):
            specs[f"tier{k}.values"] = TensorSpec("U8", (inputs, buckets, size))
            if k < LAYOUT.num_tiers - 1:
                specs[f"tier{k}.mask"] = TensorSpec("U8", (inputs, buckets, LAYOUT.mask_bytes))
        specs["step"] = TensorSpec("F32", (inputs,))
        specs["scores"] = TensorSpec("F32", (inputs, LAYOUT.num_tiers))
        return specs

    def build(self, matrix: ExactMatrix) -> Bucket8Matrix:
        """Rank and round an exact matrix; one in quantised blocks is rounded to float16 first."""
        if isinstance(matrix, BucketedMatrix):
            bits, dtype = matrix.dense_bits(), matrix.dtype
        else:
            bits, dtype = from_float32(matrix.dequantise(), "float16"), "float16"
        ranked = BucketedMatrix.from_dense(bits, dtype=dtype, layout=LAYOUT)
        tiers = [to_float32(values, dtype) for values in ranked.values]
        step = np.abs(tiers[0]).max(axis=(1, 2)) / _LEVELS
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)
        # A subnormal step is coarse enough for its quotients to pass 127.
        values = tuple(
            np.clip(np.rint(tier * inverse[:, None, None]), -_LEVELS, _LEVELS).astype(np.int8) for tier in tiers
        )
        return Bucket8Matrix(matrix.shape, values, ranked.masks, step, ranked.scores)

    def arrays(self, matrix: ViewMatrix) -> dict[str, np.ndarray]:
        """The arrays of `tensors`; levels as raw bytes."""
        if not isinstance(matrix, Bucket8Matrix):
            raise InvalidArgumentError(f"view 'bucket8' stores a Bucket8Matrix, not a {type(matrix).__name__}")
        found = {f"tier{k}.values": values.view(np.uint8) for k, values in enumerate(matrix.values)}
        found |= {f"tier{k}.mask": mask for k, mask in enumerate(matrix.masks)}
        return found | {"step": matrix.step, "scores": matrix.scores}

    def load(self, arrays: Mapping[str, np.ndarray], exact: ExactMatrix) -> Bucket8Matrix:
        """From stored arrays."""
        self.check_arrays(arrays, exact.shape)
        tiers = range(LAYOUT.num_tiers)
        values = tuple(arrays[f"tier{k}.values"].view(np.int8) for k in tiers)
        masks = tuple(arrays[f"tier{k}.mask"] for k in tiers[:-1])
        return Bucket8Matrix(exact.shape, values, masks, arrays["step"], arrays["scores"])
