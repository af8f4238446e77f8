"""The mlx runtime with its Metal kernels run on the host: MLX's CPU arrays, and `metal_host_kernels` where MLX would
dispatch to a GPU. For tests; everything between the kernels is the runtime's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from metal_host_kernels import HERE, HostKernels

from specdec.runtimes.mlx.kernels import KernelText, prelude

_KINDS = {"float16": "float16", "float32": "float32", "int32": "int32", "uint32": "uint32", "uint8": "uint8"}


def to_numpy(mx: Any, array: Any) -> np.ndarray:
    """An MLX array as NumPy's; bfloat16 as raw bits, uint16."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def on_host(text: KernelText) -> KernelText:
    """A CUDA kernel of quantised matrices as the host's compiler takes it."""
    header = text.header.replace(prelude("cuda"), (HERE / "cuda.h").read_text())
    header = header[: header.rindex("#define custom_kernel_")]  # launch bounds
    # The harness passes what the body names.
    source = "// thread_position_in_threadgroup threadgroup_position_in_grid\n" + text.source.split("\n", 1)[1]
    return KernelText(text.name, header, source, text.inputs, text.outputs)


def host_builder(mx: Any, host: HostKernels) -> Any:
    """What stands in for `mlx_kernels.build`: kernels that run when they are called."""

    def build(_: Any, backend: str, text: KernelText) -> Any:
        if backend == "cuda":
            text = on_host(text)

        def call(
            *, inputs: list[Any], grid: tuple[int, int, int], threadgroup: tuple[int, int, int],
            output_shapes: list[tuple[int, ...]], output_dtypes: list[Any],
        ) -> list[Any]:  # fmt: skip
            arrays = [to_numpy(mx, array) for array in inputs]
            before = [array.copy() for array in arrays]
            kinds = [_KINDS[str(dtype).rsplit(".", 1)[-1]] for dtype in output_dtypes]
            made = host.run(
                text,
                arrays,
                list(zip(output_shapes, kinds, strict=True)),
                blocks=(grid[0] // threadgroup[0], grid[1]),
                threads=threadgroup[0],
            )
            for name, array, old, changed in zip(text.inputs, inputs, before, arrays, strict=True):
                # One that is given twice is changed under one of its names only.
                if name.startswith("cache") and not np.array_equal(old, changed, equal_nan=True):
                    array[...] = mx.array(changed)
                    mx.eval(array)
            return [mx.array(array) for array in made]

        return call

    return build


def use_host(monkeypatch: Any, folder: Path, sanitizer: str = "") -> Any:
    """Make the GPU runtime run on the host; returns the module `mlx.core`."""
    import mlx.core as mx

    from specdec.runtimes.mlx import device as mlx_device
    from specdec.runtimes.mlx import ops as mlx_ops
    from specdec.runtimes.mlx import runtime as mlx_runtime

    gpu = mlx_device.Gpu(mx, "metal", "host", "0")
    for module in (mlx_device, mlx_runtime):
        monkeypatch.setattr(module, "find_gpu", lambda: gpu)
    monkeypatch.setattr(mlx_ops, "build", host_builder(mx, HostKernels(folder, sanitizer)))
    monkeypatch.setattr(mx, "compile", lambda function: function)
    return mx
