"""Quantised matrices in their source's own codes and scales: in its blocks, or with the codes in planes (`planes`).

What the numbers mean: `quantised_types`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.weights.affine import AFFINE_TYPES
from specdec.weights.gguf_blocks import BLOCK_TYPES
from specdec.weights.planes import UPPER, PlaneType, in_planes
from specdec.weights.quantised_types import UPPER_BITS, QuantisedType, upper_bits

if TYPE_CHECKING:
    from specdec.weights.bucket import BucketedMatrix

# Weights dequantised at once: the working set stays in the cache.
_CHUNK_WEIGHTS = 1 << 19

_TYPES: dict[str, QuantisedType] = {kind.name: kind for kind in (*BLOCK_TYPES, *AFFINE_TYPES)}
_IN_PLANES: dict[str, PlaneType] = {name: in_planes(kind) for name, kind in _TYPES.items() if kind.bits > UPPER_BITS}


def quantised_types() -> list[str]:
    """Names of all types."""
    return list(_TYPES)


def quantised_type(name: str, *, planes: bool = False) -> QuantisedType:
    """The type of that name.

    Args:
        name: what a store's description calls it.
        planes: with its codes in planes, as `plane_type`.

    Raises:
        InvalidArgumentError: this version does not know it, or its codes are too short for planes.
    """
    if planes:
        return plane_type(name)
    if name not in _TYPES:
        raise InvalidArgumentError(f"unknown quantised type {name!r}: this version knows {', '.join(_TYPES)}")
    return _TYPES[name]


def plane_type(name: str) -> PlaneType:
    """The type of that name with its codes in planes.

    Raises:
        InvalidArgumentError: this version does not know it, or its codes are too short for that.
    """
    if name not in _IN_PLANES:
        bits = quantised_type(name).bits
        raise InvalidArgumentError(f"{name} has codes of {bits} bits: only longer ones lie in planes")
    return _IN_PLANES[name]


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedTable:
    """A quantised matrix of shape (out, in). Rows are decoded when they are asked for.

    Attributes:
        type: name of the type, one of `quantised_types()`.
        shape: (out, in).
        arrays: as `quantised_type(type).tensors(shape)` names them, or `plane_type(type)`; 16-bit floats as uint16 raw
            bits. Memory-mapped ones stay so.

    Raises:
        InvalidArgumentError: the type is unknown, or an array has the wrong type or shape.
    """

    type: str
    shape: tuple[int, int]
    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        specs = self.kind.tensors(self.shape)
        if set(specs) != set(self.arrays):
            raise InvalidArgumentError(f"{self.type} has the arrays {sorted(specs)}, not {sorted(self.arrays)}")
        for name, spec in specs.items():
            array = self.arrays[name]
            if array.shape != spec.shape or array.dtype != spec.memory:
                raise InvalidArgumentError(
                    f"{name} of a {self.type} matrix of shape {self.shape} must be "
                    f"{np.dtype(spec.memory)} {spec.shape}, not {array.dtype} {array.shape}"
                )

    @property
    def kind(self) -> QuantisedType:
        """What the type's name stands for, in blocks or in planes as the arrays are."""
        return quantised_type(self.type, planes=UPPER in self.arrays)

    @property
    def blocks(self) -> np.ndarray:
        """The blocks of a GGUF type, uint8 (out, bytes of a row)."""
        return self.arrays["blocks"]

    def codes(self) -> np.ndarray:
        """The code of every weight, uint8 (out, in): q8_0 as 1 to 255 with 128 for zero, q6_k as 0 to 63, …."""
        return self.kind.codes(self.arrays)

    def scale_and_offset(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and offset of every group of `kind.group` inputs, float32 (out, in / group).

        A weight is `scale * (code - kind.zero)`, minus the offset where there is one (else None), each operation
        rounded to float32.
        """
        return self.kind.scale_and_offset(self.arrays)

    def rows(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those outputs' weights, float32 (len(ids), in)."""
        index = np.asarray(ids, dtype=np.intp)
        return self.kind.dequantise({name: array[index] for name, array in self.arrays.items()})

    def dequantise(self) -> np.ndarray:
        """The weights, float32 (out, in)."""
        weights = np.empty(self.shape, dtype=np.float32)
        for part in self.chunks():
            weights[part] = self.kind.dequantise({name: array[part] for name, array in self.arrays.items()})
        return weights

    def chunks(self) -> list[slice]:
        """The outputs in slices that are decoded together; they follow from the shape alone."""
        outputs, inputs = self.shape
        step = max(1, _CHUNK_WEIGHTS // inputs)
        return [slice(start, min(start + step, outputs)) for start in range(0, outputs, step)]

    def check(self) -> None:
        """Refuse scales and offsets that are not numbers.

        Raises:
            ModelFormatError: one is NaN or infinite.
        """
        for part in self.chunks():
            factors = self.kind.scale_and_offset({name: array[part] for name, array in self.arrays.items()})
            if not all(np.isfinite(factor).all() for factor in factors if factor is not None):
                raise ModelFormatError("holds a scale that is NaN or infinite, so the model is damaged")

    @property
    def block_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedMatrix(QuantisedTable):
    """A quantised matrix that takes part in effort: an input is taken whole or not at all.

    Attributes:
        scores: float32 (in, 1): mean |w| over the outputs, taken in float64.
    """

    scores: np.ndarray

    def __post_init__(self) -> None:
        QuantisedTable.__post_init__(self)
        if self.scores.shape != (self.shape[1], 1) or self.scores.dtype != np.float32:
            raise InvalidArgumentError(
                f"scores of a quantised matrix of shape {self.shape} must be float32 {(self.shape[1], 1)}, "
                f"not {self.scores.dtype} {self.scores.shape}"
            )

    @classmethod
    def from_table(cls, table: QuantisedTable) -> QuantisedMatrix:
        """Measure the scores of a table.

        Raises:
            ModelFormatError: a weight is NaN or infinite, or too large for float32.
        """
        total = np.zeros(table.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            for part in table.chunks():
                weights = table.kind.dequantise({name: array[part] for name, array in table.arrays.items()})
                total += np.abs(weights, out=weights).sum(axis=0, dtype=np.float64)
            scores = (total / table.shape[0]).astype(np.float32)[:, None]
        if not np.isfinite(scores).all():
            raise ModelFormatError("holds a scale or weight that is NaN, infinite or too large for float32")
        return cls(table.type, table.shape, table.arrays, scores)

    @property
    def tier_sizes(self) -> tuple[int, ...]:
        """One tier."""
        return (1,)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, scores included."""
        return self.block_bytes + self.scores.nbytes

    def inputs(self, start: int, stop: int) -> QuantisedMatrix:
        """The matrix of the inputs `start` to `stop` alone, both multiples of `kind.block`."""
        arrays = self.kind.inputs(self.arrays, start, stop)
        return type(self)(self.type, (self.shape[0], stop - start), arrays, self.scores[start:stop])

    def inputs_float32(self, start: int, stop: int) -> np.ndarray:
        """The weights of the inputs `start` to `stop`, float32 (stop - start, out): a row is a column of W."""
        block = self.kind.block
        first, last = start // block * block, -(-stop // block) * block
        arrays = self.kind.inputs(self.arrays, first, last)
        weights = np.empty((stop - start, self.shape[0]), dtype=np.float32)
        for part in self.chunks():
            rows = self.kind.dequantise({name: array[part] for name, array in arrays.items()})
            weights[:, part] = rows[:, start - first : stop - first].T
        return weights

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of codes that one multiplication reads, and of the scales of every block that it touches.

        Args:
            prefix: integer (in,), 1 for an input that is taken, else 0.
        """
        taken = np.flatnonzero(prefix)
        blocks = int(np.unique(taken // self.kind.block).size)
        return self.kind.bytes_of(int(taken.size) * self.shape[0], blocks * self.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class UpperMatrix(QuantisedMatrix):
    """A quantised matrix of which only the upper bits of codes are loaded.

    In planes it has no array of the rest; blocks are whole all the same. The scores are those of the whole matrix.
    """

    @property
    def kind(self) -> QuantisedType:
        """The type through the upper bits of its codes."""
        return upper_bits(quantised_type(self.type, planes=UPPER in self.arrays), UPPER_BITS)

    @property
    def nbytes(self) -> int:
        """Bytes of what is loaded: upper bits, scales and scores."""
        weights = self.shape[0] * self.shape[1]
        return self.kind.bytes_of(weights, weights // self.kind.block) + self.scores.nbytes


# A matrix in the exact view, however it is stored.
ExactMatrix: TypeAlias = "BucketedMatrix | QuantisedMatrix"
