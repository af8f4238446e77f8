"""The nested view: the upper bits of the codes that a quantised target has anyway, so that a draft reads less of it.

Of a code of `n` bits the view sees the upper four; what the lower `n - 4` bits would add is taken to be half their
range (`quantised_types.UpperBits`). Codes of four bits are seen whole. Kept in two planes, upper bits and the rest, a
matrix costs no memory beyond its own. Effort chooses whole inputs, by the scores of the exact matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.weights.base import TensorSpec, View, ViewMatrix
from specdec.weights.quantised import ExactMatrix, QuantisedMatrix
from specdec.weights.quantised_types import UPPER_BITS, QuantisedType, upper_bits


@dataclass(frozen=True, slots=True, eq=False)
class NestedMatrix:
    """A quantised matrix of shape (out, in), seen through the upper bits of its codes.

    Attributes:
        exact: the matrix itself.
        bits: upper bits of a code that are seen, at most as many as it has.
    """

    exact: QuantisedMatrix
    bits: int = UPPER_BITS

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.exact.shape

    @property
    def scores(self) -> np.ndarray:
        """Those of the exact matrix."""
        return self.exact.scores

    @property
    def tier_sizes(self) -> tuple[int, ...]:
        """One tier: an input is taken whole or not at all."""
        return (1,)

    @property
    def nbytes(self) -> int:
        """0: the view needs no bytes beyond the exact matrix's."""
        return 0

    @property
    def kind(self) -> QuantisedType:
        """The exact matrix's type through `bits` bits."""
        return upper_bits(self.exact.kind, self.bits)

    def dequantise(self) -> np.ndarray:
        """The weights that this view multiplies by, float32 (out, in)."""
        kind, weights = self.kind, np.empty(self.shape, dtype=np.float32)
        for part in self.exact.chunks():
            weights[part] = kind.dequantise({name: array[part] for name, array in self.exact.arrays.items()})
        return weights

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of upper bits that one multiplication reads, and of the scales of every block that it touches.

        Args:
            prefix: integer (in,), 1 for an input that is taken, else 0.
        """
        taken, outputs = np.flatnonzero(prefix), self.shape[0]
        blocks = int(np.unique(taken // self.kind.block).size)
        return self.kind.bytes_of(int(taken.size) * outputs, blocks * outputs)


class NestedView(View):
    """Upper bits of quantised codes; a matrix in buckets is itself."""

    name = "nested"

    def suits(self, *, quantised: bool) -> bool:
        """Quantised stores."""
        return quantised

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:  # noqa: ARG002
        """Nothing: the exact view's arrays serve."""
        return {}

    def build(self, matrix: ExactMatrix) -> ViewMatrix:
        """The matrix through its upper bits."""
        return NestedMatrix(matrix) if isinstance(matrix, QuantisedMatrix) else matrix

    def arrays(self, matrix: ViewMatrix) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Nothing."""
        return {}

    def load(self, arrays: Mapping[str, np.ndarray], exact: ExactMatrix) -> ViewMatrix:
        """From the exact matrix."""
        self.check_arrays(arrays, exact.shape)
        return self.build(exact)
