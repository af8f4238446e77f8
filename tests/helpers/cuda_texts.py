"""The texts of the CUDA kernels that a runtime asks for, compiled by nvcc where it is installed; nothing runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from specdec.runtimes.mlx.cuda_code import whole_text
from specdec.runtimes.mlx.kernels import KernelText


def nvcc() -> str | None:
    """The compiler, or None."""
    folders = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    return shutil.which("nvcc") or next((f"{one}/bin/nvcc" for one in folders if Path(one, "bin/nvcc").is_file()), None)


class Collector:
    """Stands for `kernels.build` on CUDA: keeps each text as it would be compiled, and gives zeros for results. A name
    may stand for one text only: MLX keeps machine code by name."""

    def __init__(self, mx: Any) -> None:
        self.mx = mx
        self.texts: dict[str, str] = {}

    def build(self, _: Any, backend: str, text: KernelText) -> Any:
        """What `kernels.build` gives."""
        assert backend == "cuda"

        def call(*, inputs: Any, output_shapes: Any, output_dtypes: Any, **_: Any) -> list[Any]:
            arrays = dict(zip(text.inputs, inputs, strict=True))
            results = dict(zip(text.outputs, output_dtypes, strict=True))
            shapes = [name for name in text.inputs if f"{name}_shape" in text.source]
            name = f"custom_kernel_{text.name}"
            whole = whole_text(name, text.header, text.source, arrays, results, shapes=shapes)
            assert self.texts.setdefault(text.name, whole) == whole, text.name
            return [
                self.mx.zeros(shape, dtype=dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
            ]

        return call


def use_cuda_texts(monkeypatch: Any) -> Collector:
    """Make the GPU runtime collect CUDA kernels, one for each phase."""
    import mlx.core as mx

    from specdec.runtimes.mlx import device, ops, runtime

    collector, gpu = Collector(mx), device.Gpu(mx, "cuda", "texts", "0")
    for module in (device, runtime):
        monkeypatch.setattr(module, "find_gpu", lambda: gpu)
    monkeypatch.setattr(ops, "build", collector.build)
    monkeypatch.setattr(mx, "compile", lambda function: function)
    return collector


def compile_text(folder: Path, name: str, text: str) -> str:
    """What nvcc says of a text; empty when it compiles without a word."""
    file = folder / f"{name}.cu"
    file.write_text(text)
    command = [str(nvcc()), "-cubin", "-arch=sm_90a", "-Xptxas=-v", "-o", str(file.with_suffix(".cubin")), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr + done.stdout
    # 177: a kernel that chooses nothing does not use the memory for it.
    told = [line for line in said.splitlines() if not line.startswith("Remark") and "#177" not in line]
    wrong = [line for line in told if "error" in line or "warning" in line]
    return "\n".join(wrong) if done.returncode == 0 else said
