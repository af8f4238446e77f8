"""Whole inputs of 16-bit matrices: what the exact view of new stores takes or leaves at an effort below 1.

The weights stay the exact view's. An input is taken or left with all its weights, so a multiplication reads long
runs and no masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specdec.weights.bucket import BucketedMatrix
from specdec.weights.layout import BucketLayout

__all__ = ["InputsMatrix", "input_scores"]


def input_scores(scores: np.ndarray, layout: BucketLayout, *, loaded: int | None = None) -> np.ndarray:
    """Mean |w| of every input, float32 (in, 1), from the means of its tiers; the mean is taken in float64.

    Args:
        scores: float32 (in, K), mean |w| of every tier.
        layout: bucket and tier sizes.
        loaded: tiers that count, the others being zeros; None takes all.
    """
    sizes = np.array(layout.tier_sizes, np.float64)
    sizes[loaded if loaded is not None else len(sizes) :] = 0
    total = np.zeros(len(scores), np.float64)
    for k, size in enumerate(sizes):  # in this order on every machine
        total += scores[:, k].astype(np.float64) * size
    return (total / layout.bucket_size).astype(np.float32)[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class InputsMatrix:
    """A matrix in buckets of which effort takes whole inputs.

    Attributes:
        exact: its weights.
        scores: float32 (in, 1), mean |w| of every input.
    """

    exact: BucketedMatrix
    scores: np.ndarray

    @classmethod
    def of(cls, exact: BucketedMatrix) -> InputsMatrix:
        """The inputs of a matrix."""
        return cls(exact, input_scores(exact.scores, exact.layout))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.exact.shape

    @property
    def tier_sizes(self) -> tuple[int, ...]:
        """One tier: an input is taken whole."""
        return (1,)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, scores included."""
        return self.exact.nbytes

    def dequantise(self) -> np.ndarray:
        """The weights, float32 (out, in); exact."""
        return self.exact.dequantise()

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of weights that one multiplication reads: no masks.

        Args:
            prefix: integer (in,), 1 for the inputs taken, 0 for others.
        """
        inputs = self.shape[1]
        everything = self.exact.bytes_read(np.full(inputs, self.exact.layout.num_tiers))
        return everything * int(np.count_nonzero(prefix)) // inputs
