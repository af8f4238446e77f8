"""Hard inference on a GPU: the kernels `fff_choose` and `fff_combine` of Metal and CUDA, called through MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.fff.weights import ACTIVATIONS, TreeWeights
from specdec.runtimes.mlx import kernels as mlx_kernels
from specdec.runtimes.mlx.device import Gpu, find_gpu

_ALIGNED = 4  # values that a lane reads at once
_LEAST = 8  # MLX hands over smaller arrays in another way
_LANES = 32
_MOST_WARPS = 16
_MOST_ROWS = 65535  # blocks along the second axis of a grid
# Levels computed together, by rows times trees: more of them wait less and read more. Measured on an H200, docs/fff.md.
_STEPS = ((64, 4), (512, 3))


class GpuTrees:
    """A fast feedforward layer on the GPU that MLX drives. A row's result does not depend on the other rows.

    Args:
        weights: float32 or float16, as the kernels will read them; sums are float32.
        gpu: the GPU; the first that MLX finds if None.

    Raises:
        RuntimeUnavailableError: MLX has no GPU here.
    """

    def __init__(self, weights: TreeWeights, *, gpu: Gpu | None = None) -> None:
        self._gpu = gpu or find_gpu()
        self.weights = weights
        mx = self._gpu.mx
        padded = max(-(-weights.inputs // _ALIGNED) * _ALIGNED, _LEAST)
        self._padded = padded

        def rows(array: Any) -> Any:
            wide = np.zeros((max(array[..., 0].size, 1), padded), array.dtype)
            wide[: array[..., 0].size, : weights.inputs] = array.reshape(-1, weights.inputs)
            return mx.array(wide)

        def flat(array: Any, dtype: Any) -> Any:
            values = np.zeros(max(0 if array is None else array.size, _LEAST), dtype)
            if array is not None:
                values[: array.size] = array.reshape(-1)
            return mx.array(values)

        dtype = weights.hidden_weight.dtype
        self._first = [
            rows(weights.node_weight), flat(weights.node_bias, np.float32),
            rows(weights.hidden_weight), flat(weights.hidden_bias, np.float32),
        ]  # fmt: skip
        self._second = [
            flat(weights.node_output, dtype), flat(weights.output_weight, dtype), flat(weights.output_bias, np.float32),
        ]  # fmt: skip
        mx.eval(self._first, self._second)
        self._path = weights.node_output is not None
        self._used = weights.leaf_width + weights.depth * self._path
        self._kernels = dict[tuple[str, int], Callable[..., list[Any]]]()

    def __call__(self, x: Any, *, step: int | None = None) -> Any:
        """The output of rows.

        Args:
            x: MLX array (M, in), of any floating type.
            step: levels whose nodes are computed together; None chooses by the number of rows. It changes no bit.

        Returns:
            MLX array (M, out), float32.

        Raises:
            InvalidArgumentError: `x` has another shape, or too many rows.
        """
        leaves, active = self.choose(x, step=step)
        weights, mx = self.weights, self._gpu.mx
        count = leaves.shape[0]
        threads = min(-(-weights.outputs // _LANES) * _LANES, 128)
        kernel = self._kernel("fff_combine", threads)
        blocks = -(-weights.outputs // threads)
        return kernel(
            inputs=[leaves, active, *self._second],
            grid=(blocks * threads, count, 1),
            threadgroup=(threads, 1, 1),
            output_shapes=[(count, weights.outputs)],
            output_dtypes=[mx.float32],
        )[0]

    def choose(self, x: Any, *, step: int | None = None) -> tuple[Any, Any]:
        """Leaves (M, T) int32 that rows (M, in) reach, and activations (M, T, neurons used of a tree) float32."""
        weights, mx = self.weights, self._gpu.mx
        if x.ndim != 2 or x.shape[1] != weights.inputs or not 1 <= x.shape[0] <= _MOST_ROWS:
            raise InvalidArgumentError(
                f"x must have the shape (M, {weights.inputs}) with M from 1 to {_MOST_ROWS}, not {tuple(x.shape)}"
            )
        count = x.shape[0]
        x = x.astype(mx.float32)
        if self._padded > weights.inputs:
            x = mx.pad(x, [(0, 0), (0, self._padded - weights.inputs)])
        step = step or next((levels for most, levels in _STEPS if count * weights.trees <= most), 1)
        warps = min(max(2**step - 1, min(weights.leaf_width, _MOST_WARPS)), _MOST_WARPS)
        kernel = self._kernel("fff_choose", step * 32 + warps)
        leaves, active = kernel(
            inputs=[x, *self._first],
            grid=(weights.trees * warps * _LANES, count, 1),
            threadgroup=(warps * _LANES, 1, 1),
            output_shapes=[(count, weights.trees), (count, weights.trees, self._used)],
            output_dtypes=[mx.int32, mx.float32],
        )
        return leaves, active

    def _kernel(self, name: str, variant: int) -> Callable[..., list[Any]]:
        if (name, variant) not in self._kernels:
            weights = self.weights
            choose = name == "fff_choose"
            constants = {
                "PADDED": self._padded, "DEPTH": weights.depth, "NODES": weights.leaves - 1, "LEAVES": weights.leaves,
                "WIDTH": weights.leaf_width, "TREES": weights.trees, "USED": self._used, "OUTPUTS": weights.outputs,
                "PATH": int(self._path), "BIASED": int(weights.output_bias is not None),
                "ACTIVATION": ACTIVATIONS.index(weights.activation),
            }  # fmt: skip
            constants |= {"STEP": variant // 32, "WARPS": variant % 32} if choose else {"THREADS": variant}
            threads = variant % 32 * _LANES if choose else variant
            suffix = ".cuh" if self._gpu.backend == "cuda" else ".metal"
            text = mlx_kernels.kernel_text(
                self._gpu.backend, name, constants,
                inputs=("x", "node_weight", "node_bias", "hidden_weight", "hidden_bias") if choose else
                ("leaves", "active", "node_output", "output_weight", "output_bias"),
                outputs=("leaves", "active") if choose else ("y",),
                bounds=(threads, 1), parts=("fff_common" + suffix,),
                types=[str(array.dtype) for array in (self._first if choose else self._second)],
            )  # fmt: skip
            self._kernels[name, variant] = mlx_kernels.build(self._gpu.mx, self._gpu.backend, text)
        return self._kernels[name, variant]
