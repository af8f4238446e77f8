"""The nested view: the upper bits of the codes that a quantised target has anyway, so that a draft reads less of it.

Of a code of `n` bits the view sees the upper four; what the lower `n - 4` bits would add is taken to be half their
range. Codes of four bits are seen whole. Kept in two planes, upper bits and the rest, a matrix costs no memory beyond
its own. Effort chooses whole inputs, by the scores of the exact matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.views.base import TensorSpec, View, ViewMatrix
from specdec.views.quantised import ExactMatrix, QuantisedMatrix

BITS = 4


@dataclass(frozen=True, slots=True, eq=False)
class NestedMatrix:
    """A quantised matrix of shape (out, in), seen through the upper bits of its codes.

    Attributes:
        exact: the matrix itself.
        bits: upper bits of a code that are seen, at most as many as it has.
    """

    exact: QuantisedMatrix
    bits: int = BITS

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
        """No bytes beyond the exact matrix's."""
        return 0

    def dequantise(self) -> np.ndarray:
        """The weights that this view multiplies by, float32 (out, in).

        With `n - bits` hidden bits, `code'` the code with those set to zero and `half = (2^(n - bits) - 1) / 2`, a
        weight is `scale * (code' + half - zero)`, minus the offset where there is one. The bracket is exact in float32;
        the product and the difference round once each, as in the exact matrix.
        """
        kind = self.exact.kind
        hidden = max(0, kind.bits - self.bits)
        centre = np.float32(((1 << hidden) - 1) / 2 - kind.zero)
        weights = np.empty(self.shape, dtype=np.float32)
        for part in self.exact.chunks():
            arrays = {name: array[part] for name, array in self.exact.arrays.items()}
            codes, (scale, offset) = kind.codes(arrays), kind.scale_and_offset(arrays)
            codes = codes >> np.uint8(hidden) << np.uint8(hidden)
            seen = codes.reshape(*scale.shape, kind.group).astype(np.float32) + centre
            seen *= scale[..., None]
            if offset is not None:
                seen -= offset[..., None]
            weights[part] = seen.reshape(len(codes), -1)
        return weights

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of upper bits that one multiplication reads, and of the scales of every block that it touches.

        Args:
            prefix: integer (in,), 1 for an input that is taken, else 0.
        """
        kind, outputs = self.exact.kind, self.shape[0]
        taken = np.flatnonzero(prefix)
        blocks = int(np.unique(taken // kind.block).size)
        return int(taken.size) * outputs * min(self.bits, kind.bits) // 8 + blocks * outputs * kind.extra


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
