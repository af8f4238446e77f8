"""Up to 8,192 vectors of an index: their codes, numbers and rows. How codes are read is kernels/cpu/search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.search.native import kernels

CHUNK = 8192  # vectors; SEARCH_CHUNK of the kernels
LINE = 128  # vectors that share a line of 64 bytes; SEARCH_LINE of the kernels

METRICS = ("ip", "cosine", "l2")
# Form: NumPy type of the rows that are kept, and planes of codes of 4 bits.
FORMS: dict[str, tuple[type[np.generic] | None, int]] = {
    "float32": (np.float32, 2),
    "float16": (np.float16, 2),
    "int8": (None, 2),
    "int4": (None, 1),
}
STEPS, BIASES, NORMS, ERRORS = range(4)
LARGEST = 1e15  # of a value; squares and their sums stay far from the largest float32


@dataclass(frozen=True, slots=True)
class Space:
    """What all chunks of an index share.

    Attributes:
        metric: one of `METRICS`.
        form: one of `FORMS`.
        centre: float32 (d,), mean of the vectors that the index was built of.
        spread: float32 (d,), their standard deviation, never 0.
    """

    metric: str
    form: str
    centre: NDArray[np.float32]
    spread: NDArray[np.float32]

    @property
    def dims(self) -> int:
        """Dimensions d."""
        return len(self.centre)

    @property
    def row_dtype(self) -> type[np.generic] | None:
        """Type of the rows that are kept; None where codes are all there is."""
        return FORMS[self.form][0]

    @property
    def planes(self) -> int:
        """Planes of codes."""
        return FORMS[self.form][1]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some vectors. Arrays are never changed in place, so a search may go on while the index changes.

    Attributes:
        codes: uint8 (planes, d, width / 2), width a multiple of 128.
        numbers: float32 (4, n): step, bias (-inf: removed), norm of the upper codes, error of the codes.
        rows: float32 or float16 (n, d), the vectors themselves, or None.
        factors: float64 (n,) for cosine: 1 / |x|, or 0; else None.
    """

    codes: NDArray[np.uint8]
    numbers: NDArray[np.float32]
    rows: NDArray[Any] | None
    factors: NDArray[np.float64] | None

    def __len__(self) -> int:
        return int(self.numbers.shape[1])

    @property
    def removed(self) -> NDArray[np.bool_]:
        """Bool (n,): which are removed."""
        removed: NDArray[np.bool_] = np.isneginf(self.numbers[BIASES])
        return removed

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.codes, self.numbers, self.rows, self.factors)
        return sum(array.nbytes for array in arrays if array is not None)

    def without(self, places: NDArray[np.int64]) -> Chunk:
        """The same chunk with vectors marked as removed."""
        numbers = np.array(self.numbers)
        numbers[BIASES, places] = -np.inf
        return replace(self, numbers=numbers)

    def grown(self, more: Chunk) -> Chunk:
        """This chunk and another whose codes have the places after it."""
        codes = np.array(more.codes)
        codes[:, :, : self.codes.shape[2]] |= self.codes
        rows = None if self.rows is None or more.rows is None else np.concatenate([self.rows, more.rows])
        factors = None if self.factors is None or more.factors is None else np.concatenate([self.factors, more.factors])
        return Chunk(codes, np.concatenate([self.numbers, more.numbers], axis=1), rows, factors)


def width_of(count: int) -> int:
    """Vectors that the codes of a chunk have room for."""
    return -(-count // LINE) * LINE


def encode(space: Space, vectors: NDArray[Any], *, first: int, threads: int) -> Chunk:
    """Vectors as a chunk, or as the end of one.

    Args:
        space: of the index.
        vectors: (n, d), finite, as they were given.
        first: place of the first one; its codes are the only thing that depends on it.
        threads: to compute with.

    Raises:
        InvalidArgumentError: float16 cannot hold a value, or values are too far from those the index was built of.
    """
    rows, values = None, np.ascontiguousarray(vectors, np.float32)
    if space.row_dtype is not None:
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(vectors, space.row_dtype)
        values = np.ascontiguousarray(rows, np.float32)
        if not np.isfinite(values).all():
            raise InvalidArgumentError('form "float16" holds values up to 65504: use form "float32"')
    factors = factors_of(values) if space.metric == "cosine" else None
    codes = np.zeros((space.planes, space.dims, width_of(first + len(values)) // 2), np.uint8)
    numbers = np.empty((4, len(values)), np.float32)
    kernels().search_encode(
        values,
        factors,
        space.centre,
        space.spread,
        rows is not None,
        space.metric == "l2",
        first,
        threads,
        codes,
        numbers,
    )
    if not np.isfinite(numbers).all():
        raise InvalidArgumentError("vectors are too far from those that the index was built of: build it anew")
    return Chunk(codes, numbers, rows, factors)


def factors_of(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 / |x| of each row, 0 for a row of zeros."""
    lengths = np.sqrt(np.square(values, dtype=np.float64).sum(axis=1))
    factors: NDArray[np.float64] = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return factors
