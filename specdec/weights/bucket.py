"""The exact view: every bit of a matrix, ordered by buckets and tiers. Its files live in `store`.

Source: bucketMul, the Effort algorithm (Kolinko, kolinko.github.io/effort); unlike there, no bit of a weight is given
up to hold its position: a mask per tier says which outputs of the bucket it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.weights.base import TensorSpec, View, ViewMatrix
from specdec.weights.dtypes import all_finite, check_dtype, magnitude, to_float32
from specdec.weights.layout import BucketLayout
from specdec.weights.quantised import ExactMatrix

__all__ = ["BucketLayout", "BucketView", "BucketedMatrix", "ExactArraysView"]

# Weights handled at once: enough to keep NumPy busy, little enough for the working set to stay in cache.
_CHUNK_WEIGHTS = 1 << 17
# Inputs transposed at once: a cache line of a row.
_CHUNK_INPUTS = 32


def _slices(inputs: int, step: int) -> list[slice]:
    """Consecutive slices of `step` inputs; the last may be shorter."""
    return [slice(start, min(start + step, inputs)) for start in range(0, inputs, step)]


@dataclass(frozen=True, slots=True, eq=False)
class BucketedMatrix:
    """A matrix W of shape (out, in), y = W v, in buckets and tiers; holds every bit of it.

    Attributes:
        shape: (out, in).
        dtype: what the raw bits mean, "float16" or "bfloat16".
        layout: bucket and tier sizes.
        values: tier k: uint16 (in, buckets, tier_sizes[k]), raw bits, in ascending order of output within a bucket.
            Outputs past `out` in the last bucket are padding: +0, ranked as any weight is.
        masks: tiers 0..K-2: uint8 (in, buckets, bucket_size / 8). Bit j (bit j % 8 of byte j // 8) is set when the
            tier holds output b * bucket_size + j. The last tier holds what no other does.
        scores: float32 (in, K): s(i, k), the mean |w| over all buckets and ranks of tier k, padding included (so that
            s never increases with k); the mean is taken in float64.

    Raises:
        InvalidArgumentError: an array has the wrong type or shape.
    """

    shape: tuple[int, int]
    dtype: str
    layout: BucketLayout
    values: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    scores: np.ndarray

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        specs = self.tensors(self.shape, self.layout, dtype=self.dtype)
        found = self.arrays()
        if len(found) != len(specs):
            raise InvalidArgumentError(
                f"a matrix of {self.layout.num_tiers} tiers has {len(specs)} arrays, not {len(found)}"
            )
        for name, spec in specs.items():
            array = found[name]
            if array.shape != spec.shape or array.dtype != spec.memory:
                raise InvalidArgumentError(
                    f"{name} of a {self.shape} matrix must be {np.dtype(spec.memory)} {spec.shape}, "
                    f"not {array.dtype} {array.shape}"
                )

    @staticmethod
    def tensors(shape: tuple[int, int], layout: BucketLayout, *, dtype: str) -> dict[str, TensorSpec]:
        """The stored arrays of a matrix of `shape` (out, in): `tier0.values`, `tier0.mask`, …, `scores`."""
        outputs, inputs = shape
        if outputs < 1 or inputs < 1:
            raise InvalidArgumentError(f"a matrix must have at least one output and one input, not shape {shape}")
        buckets, bits = layout.buckets(outputs), {"float16": "F16", "bfloat16": "BF16"}[dtype]
        specs = {}
        for k, size in enumerate(layout.tier_sizes):
            specs[f"tier{k}.values"] = TensorSpec(bits, (inputs, buckets, size))
            if k < layout.num_tiers - 1:
                specs[f"tier{k}.mask"] = TensorSpec("U8", (inputs, buckets, layout.mask_bytes))
        specs["scores"] = TensorSpec("F32", (inputs, layout.num_tiers))
        return specs

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `tensors` names."""
        found = {f"tier{k}.values": values for k, values in enumerate(self.values)}
        found |= {f"tier{k}.mask": mask for k, mask in enumerate(self.masks)}
        return found | {"scores": self.scores}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], *, shape: tuple[int, int], dtype: str, layout: BucketLayout
    ) -> BucketedMatrix:
        """The inverse of `arrays`; the arrays are kept as they are, memory-mapped ones too."""
        values = tuple(arrays[f"tier{k}.values"] for k in range(layout.num_tiers))
        masks = tuple(arrays[f"tier{k}.mask"] for k in range(layout.num_tiers - 1))
        return cls(shape=shape, dtype=dtype, layout=layout, values=values, masks=masks, scores=arrays["scores"])

    @classmethod
    def from_dense(cls, bits: np.ndarray, *, dtype: str, layout: BucketLayout) -> BucketedMatrix:
        """Bucket a dense matrix.

        Args:
            bits: uint16 (out, in), raw bits; need not be contiguous.
            dtype: "float16" or "bfloat16".
            layout: bucket and tier sizes.

        Raises:
            InvalidArgumentError: `bits` is not an uint16 matrix or empty.
            ModelFormatError: a weight is infinite or NaN.
        """
        if bits.ndim != 2 or bits.dtype != np.uint16:
            raise InvalidArgumentError(f"bits must be a uint16 matrix, not {bits.dtype} of shape {bits.shape}")
        shape = (bits.shape[0], bits.shape[1])
        arrays = {
            name: np.empty(spec.shape, dtype=spec.memory)
            for name, spec in cls.tensors(shape, layout, dtype=check_dtype(dtype)).items()
        }
        for block in _slices(shape[1], _CHUNK_INPUTS):
            count = block.stop - block.start
            columns = np.zeros((count, layout.buckets(shape[0]), layout.bucket_size), dtype=np.uint16)
            columns.reshape(count, -1)[:, : shape[0]] = bits[:, block].T
            if not all_finite(columns, dtype):
                raise ModelFormatError("the matrix holds an infinite weight or a NaN")
            for part in _slices(count, max(1, _CHUNK_WEIGHTS // shape[0])):
                place = slice(block.start + part.start, block.start + part.stop)
                _rank({name: array[place] for name, array in arrays.items()}, columns[part], dtype, layout)
        return cls.from_arrays(arrays, shape=shape, dtype=dtype, layout=layout)

    @property
    def tier_sizes(self) -> tuple[int, ...]:
        """Weights per tier of a bucket."""
        return self.layout.tier_sizes

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, scores included."""
        return sum(array.nbytes for array in self.arrays().values())

    def inputs_bits(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Dense raw bits of inputs `start` to `stop`, uint16 (stop - start, out): a row is a column of W."""
        first, last, _ = slice(start, stop).indices(self.shape[1])
        dense = np.empty((last - first, self.layout.buckets(self.shape[0]) * self.layout.bucket_size), dtype=np.uint16)
        for part in _slices(len(dense), max(1, _CHUNK_WEIGHTS // self.shape[0])):
            self._unrank(dense[part], slice(first + part.start, first + part.stop))
        return dense[:, : self.shape[0]]

    def inputs_float32(self, start: int, stop: int) -> np.ndarray:
        """The weights of the inputs `start` to `stop`, float32 (stop - start, out): a row is a column of W."""
        return to_float32(self.inputs_bits(start, stop), self.dtype)

    def _unrank(self, dense: np.ndarray, part: slice) -> None:
        """Write the weights of the inputs `part` in order of output: uint16 (inputs, padded outputs)."""
        size, tiers = self.layout.bucket_size, self.layout.num_tiers
        # Order of a bucket's outputs in its values: by tier, then by output.
        order = np.empty((len(dense), dense.shape[1] // size, size), dtype=np.uint16)
        order[:] = np.arange(size) + 64 * (tiers - 1)
        for k in range(tiers - 1):
            held = np.unpackbits(self.masks[k][part], axis=-1, bitorder="little")
            order -= held * np.uint16(64 * (tiers - 1 - k))
        order.sort(axis=-1)
        keyed = (order & np.uint16(63)).astype(np.uint32) << np.uint32(16)
        rank = 0
        for values in self.values:
            keyed[..., rank : rank + values.shape[-1]] |= values[part]
            rank += values.shape[-1]
        keyed.sort(axis=-1)
        dense[:] = keyed.astype(np.uint16).reshape(dense.shape)

    def dense_bits(self) -> np.ndarray:
        """The matrix as `from_dense` took it, bit for bit: uint16 (out, in), contiguous."""
        dense = np.empty(self.shape, dtype=np.uint16)
        for part in _slices(self.shape[1], _CHUNK_INPUTS):
            dense[:, part] = self.inputs_bits(part.start, part.stop).T
        return dense

    def dequantise(self) -> np.ndarray:
        """The weights, float32 (out, in); exact."""
        return to_float32(self.dense_bits(), self.dtype)

    def tier_of_weight(self) -> np.ndarray:
        """Tier of every weight, uint8 (in, buckets * bucket_size); padded outputs come last."""
        inputs, buckets = self.values[0].shape[:2]
        tier = np.full((inputs, buckets, self.layout.bucket_size), self.layout.num_tiers - 1, dtype=np.uint8)
        for k, mask in enumerate(self.masks):
            tier[np.unpackbits(mask, axis=-1, bitorder="little").view(bool)] = k
        return tier.reshape(inputs, -1)

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of values and masks that one multiplication reads.

        Taking every tier of every input is a dense multiplication, which needs no mask: then it is 2 * out * in.

        Args:
            prefix: integer (in,), tiers n(i) taken of each input, 0 to K.
        """
        tiers, buckets = self.layout.num_tiers, self.values[0].shape[1]
        taken = np.bincount(prefix, minlength=tiers + 1)
        if taken[tiers] == self.shape[1]:
            return 2 * self.shape[0] * self.shape[1]
        cost = [2 * size + (self.layout.mask_bytes if k < tiers - 1 else 0) for k, size in enumerate(self.tier_sizes)]
        return sum(int(taken[n]) * buckets * sum(cost[:n]) for n in range(tiers + 1))


def _rank(arrays: dict[str, np.ndarray], dense: np.ndarray, dtype: str, layout: BucketLayout) -> None:
    """Split some inputs into tiers.

    Args:
        arrays: as `BucketedMatrix.tensors` names them, for these inputs; written.
        dense: uint16 (inputs, buckets, bucket_size), contiguous.
        dtype: what the bits mean.
        layout: bucket and tier sizes.
    """
    inputs, size = len(dense), layout.bucket_size
    # One key per weight: smaller for larger |w| and, between equal ones, for the lower output; so keys never tie.
    # From the top: 15 bits of inverted magnitude, 6 of output, the sign. One sort ranks the weights; then the tier
    # that a rank belongs to goes on top and a second sort puts each tier in order of output.
    keys = (np.uint16(0x7FFF) - magnitude(dense)).astype(np.uint32) << np.uint32(7)
    keys |= np.arange(size, dtype=np.uint32) << np.uint32(1)
    keys |= dense >> np.uint16(15)
    ranked = np.sort(keys, axis=-1)
    tiered = np.uint32(0x7FFF) - (ranked >> np.uint32(7))
    tiered |= (ranked & np.uint32(0x7F)) << np.uint32(15)  # the sign to bit 15, the output to bits 16 to 21
    tiered |= np.repeat(np.arange(layout.num_tiers, dtype=np.uint32), layout.tier_sizes) << np.uint32(22)
    tiered.sort(axis=-1)
    values = tiered.astype(np.uint16)
    above, rank = np.zeros(dense.shape, dtype=bool), 0
    for k, count in enumerate(layout.tier_sizes):
        tier = np.ascontiguousarray(values[..., rank : rank + count])
        rank += count
        arrays[f"tier{k}.values"][:] = tier
        if k < layout.num_tiers - 1:
            upto = keys <= ranked[..., rank - 1 : rank]
            arrays[f"tier{k}.mask"][:] = np.packbits(upto ^ above, axis=-1, bitorder="little")
            above = upto
        sizes = to_float32(magnitude(tier), dtype).reshape(inputs, -1)
        arrays["scores"][:, k] = sizes.mean(axis=1, dtype=np.float64)
    # Equal weights in neighbouring tiers can leave means that differ in the last place, the wrong way round.
    np.minimum.accumulate(arrays["scores"], axis=1, out=arrays["scores"])


class ExactArraysView(View):
    """A view that reads the exact matrices themselves: no array of its own."""

    reads_exact = True

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:  # noqa: ARG002
        """Nothing: the exact view's arrays serve."""
        return {}

    def build(self, matrix: ExactMatrix) -> ExactMatrix:
        """The matrix itself."""
        return matrix

    def arrays(self, matrix: ViewMatrix) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Nothing."""
        return {}

    def load(self, arrays: Mapping[str, np.ndarray], exact: ExactMatrix) -> ExactMatrix:
        """The exact matrix."""
        self.check_arrays(arrays, exact.shape)
        return exact


class BucketView(ExactArraysView):
    """Draft from the exact tiers. Of a mixed store, see `own`."""

    name = "bucket"

    def suits(self, *, quantised: bool) -> bool:
        """Stores whose matrices all have tiers."""
        return not quantised
