"""Hard inference on the CPU by the native kernels: NumPy in, NumPy out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.fff.weights import ACTIVATIONS, TreeWeights
from specdec.search.native import instruction_set, kernels, thread_count

_USER = "a fast feedforward layer on the CPU"


class HardFeedforward:
    """A layer in which each row takes one leaf of every tree. A row's result does not depend on the other rows.

    Args:
        weights: float32, or float16, which the kernels read as it is; sums are float32.
        threads: rows are spread over so many; None takes all cores.

    Raises:
        RuntimeUnavailableError: specdec was installed without its native kernels.
        InvalidArgumentError: `threads` is out of range.
    """

    def __init__(self, weights: TreeWeights, *, threads: int | None = None) -> None:
        self.weights = weights
        self.threads = thread_count(threads)
        native = kernels(_USER)
        arrays = weights.arrays()
        half = weights.hidden_weight.dtype == np.float16

        def given(name: str) -> Any:
            array = arrays.get(name)
            if array is None:
                return None
            return array.astype(np.float32) if name.endswith("_bias") else array.view(np.uint16) if half else array

        self._inputs, self._outputs = weights.inputs, weights.outputs  # a call takes microseconds
        self._forward = native.FeedforwardTrees(
            instruction_set(), ACTIVATIONS.index(weights.activation), given("node_weight"), given("node_bias"),
            given("hidden_weight"), given("hidden_bias"), given("output_weight"), given("output_bias"),
            given("node_output"),
        ).forward  # fmt: skip

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """The output.

        Args:
            x: (..., in), real numbers.

        Returns:
            (..., out) float32.

        Raises:
            InvalidArgumentError: `x` has another shape or is not numbers.
        """
        return self._run(x, None)

    def leaves(self, x: NDArray[Any]) -> NDArray[np.int32]:
        """The leaf that each row reaches in each tree: (..., T) from 0, left to right, of rows (..., in)."""
        found = np.empty((self._rows(x).shape[0], self.weights.trees), np.int32)
        self._run(x, found)
        return found.reshape(*np.shape(x)[:-1], self.weights.trees)

    def _rows(self, x: NDArray[Any]) -> NDArray[np.float32]:
        x = np.asarray(x)
        inputs = self._inputs
        if x.ndim < 1 or x.shape[-1] != inputs or x.dtype.kind not in "fiub":
            raise InvalidArgumentError(
                f"rows must be {inputs} numbers each, not an array of shape {x.shape} and type {x.dtype}"
            )
        x = np.ascontiguousarray(x, np.float32)
        return x if x.ndim == 2 else x.reshape(-1, inputs)

    def _run(self, x: NDArray[Any], leaves: NDArray[np.int32] | None) -> NDArray[np.float32]:
        rows = self._rows(x)
        result = np.empty((rows.shape[0], self._outputs), np.float32)
        self._forward(rows, self.threads, result, leaves)
        return result if rows is x else result.reshape(*np.shape(x)[:-1], self._outputs)
