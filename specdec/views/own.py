"""The own view: draft from a quantised target's own blocks, choosing whole inputs. It needs no memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from specdec.views.base import TensorSpec, View, ViewMatrix
from specdec.views.quantised import ExactMatrix


class OwnView(View):
    """The exact matrices themselves. In a store that is quantised in part, those in buckets draft from their tiers."""

    name = "own"

    def suits(self, *, quantised: bool) -> bool:
        """Quantised stores; of others this is what `bucket` does."""
        return quantised

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
