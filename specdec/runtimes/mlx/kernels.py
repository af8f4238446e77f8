"""GPU kernels as MLX takes them: the bodies in `kernels/metal` and `kernels/cuda` with their sizes filled in.

A body is the inside of one kernel; MLX writes the signature around it. Sizes are compile-time constants, put in front
as `#define` lines. Which kernel multiplies what is decided in `model`; packing of weights is in `pack`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

from specdec.runtimes.mlx.cuda_code import CudaCompiler, cuda_compiler, whole_text

SUFFIX = {"metal": ".metal", "cuda": ".cu"}
PRELUDE = {"metal": "prelude.metal", "cuda": "prelude.cuh"}
_INCLUDE = re.compile(r'^#include "(\w+)"$', re.MULTILINE)

Constant = int | float | str


@dataclass(frozen=True, slots=True)
class KernelText:
    """Everything that MLX needs to build one kernel.

    Attributes:
        name: unique for the text: MLX keeps compiled kernels by name.
        header: text before the kernel.
        source: the body.
        inputs: parameter names of the inputs, in order.
        outputs: parameter names of the outputs, in order.
    """

    name: str
    header: str
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@cache
def body(backend: str, name: str) -> str:
    """A kernel's file, with the parts that it includes."""
    text = part(backend, name + SUFFIX[backend])
    return _INCLUDE.sub(lambda match: body(backend, match[1]), text)


@cache
def part(backend: str, name: str) -> str:
    """A file of functions that several kernels share, in the backend's folder or one of those in it."""
    folder = resources.files(f"specdec.kernels.{backend}")
    places = (folder, *(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("_")))
    return next(file for place in places if (file := place.joinpath(name)).is_file()).read_text(encoding="utf-8")


@cache
def prelude(backend: str) -> str:
    """What every kernel of a backend may use."""
    return part(backend, PRELUDE[backend])


def kernel_text(
    backend: str,
    name: str,
    constants: Mapping[str, Constant],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    bounds: tuple[int, int] | None = None,
    parts: Sequence[str] = (),
    types: Sequence[str] = (),
) -> KernelText:
    """The text of a kernel.

    Args:
        backend: "metal" or "cuda".
        name: of its file.
        constants: sizes and types by name, for `#define`.
        inputs: names of the inputs, in the order in which they are passed.
        outputs: names of the outputs.
        bounds: CUDA: threads in a block, and blocks that should fit on a multiprocessor together.
        parts: files of functions that need the constants, in front of the kernel.
        types: of the inputs and outputs, where the text may be for several: MLX keeps machine code by the name alone.
    """
    lines = define(constants)
    source, header = lines + body(backend, name), prelude(backend)
    if parts:
        source, header = body(backend, name), header + lines + "".join(part(backend, file) for file in parts)
    whole = f"{header}{source}{inputs}{outputs}{bounds}{''.join(types)}"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
    unique = f"specdec_{name}_{digest}"
    if bounds and backend == "cuda":
        # MLX writes `__global__ void custom_kernel_NAME(`: a macro of that name is the only way to say how many threads
        # there are, without which the compiler may take more registers than a block of them has.
        header += f"#define custom_kernel_{unique} __launch_bounds__({bounds[0]}, {bounds[1]}) custom_kernel_{unique}\n"
        source = f"#undef custom_kernel_{unique}\n{source}"
    return KernelText(unique, header, source, tuple(inputs), tuple(outputs))


def define(constants: Mapping[str, Constant]) -> str:
    """The lines in front of a text that give it its sizes and types."""
    return "".join(f"#define {key} {_literal(value)}\n" for key, value in constants.items())


def present(**arrays: Any) -> dict[str, Any]:
    """Inputs of a kernel by name, in order, without those that there are not: None."""
    return {name: array for name, array in arrays.items() if array is not None}


def _literal(value: Constant) -> str:
    """A constant as both languages read it."""
    if isinstance(value, float):
        return f"{value!r}f" if "." in repr(value) or "e" in repr(value) else f"{value!r}.0f"
    return str(int(value)) if isinstance(value, bool) else str(value)


def build(mx: Any, backend: str, text: KernelText, *, shared_bytes: int = 0) -> Callable[..., list[Any]]:
    """What runs a text, called as MLX's own kernels are; `shared_bytes` of dynamic shared memory are for CUDA."""
    compiler = cuda_compiler(Path(mx.__file__).parent) if backend == "cuda" else None
    if compiler is not None:
        return Compiled(mx, text, compiler, shared_bytes)
    options: dict[str, Any] = {"input_names": list(text.inputs), "output_names": list(text.outputs)}
    options |= {"name": text.name, "source": text.source, "header": text.header}
    if backend == "metal":
        # Fast math may reorder a sum, differently in the kernel for one row and in that for eight.
        return cast("Callable[..., list[Any]]", mx.fast.metal_kernel(**options, compile_options={"math_mode": "safe"}))
    return cast("Callable[..., list[Any]]", mx.fast.cuda_kernel(**options, shared_memory=shared_bytes))


class Typed(NamedTuple):
    """What of an array decides a kernel's text.

    Attributes:
        dtype: MLX's type.
        ndim: its dimensions.
    """

    dtype: Any
    ndim: int


class Compiled:
    """A CUDA kernel whose machine code is kept from process to process.

    Args:
        mx: MLX.
        text: the kernel.
        compiler: what makes machine code of it, when it is first called: types of arrays are known then.
        shared_bytes: of dynamic shared memory.
    """

    def __init__(self, mx: Any, text: KernelText, compiler: CudaCompiler, shared_bytes: int) -> None:
        self._mx, self._text, self._compiler, self.shared_bytes = mx, text, compiler, shared_bytes
        self.name = f"custom_kernel_{text.name}"
        self._shapes = [name for name in text.inputs if f"{name}_shape" in text.source]
        self._codes: dict[tuple[Any, ...], bytes] = {}

    @property
    def has_code(self) -> bool:
        """Whether there is machine code for inputs of some types: a step's are always the same."""
        return bool(self._codes)

    def code(self, inputs: Sequence[Any], output_dtypes: Sequence[Any]) -> bytes:
        """Machine code for inputs of these types, arrays or `Typed`; from any thread."""
        text, types = self._text, (*(one.dtype for one in inputs), *output_dtypes)
        if types not in self._codes:
            arrays, results = (
                dict(zip(text.inputs, inputs, strict=True)),
                dict(zip(text.outputs, output_dtypes, strict=True)),
            )
            whole = whole_text(self.name, text.header, text.source, arrays, results, shapes=self._shapes)
            self._codes[types] = self._compiler.code(whole)
        return self._codes[types]

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[Any],
        typed: Sequence[Typed] | None = None,
    ) -> list[Any]:
        """Call it as MLX's own kernels are called; with `typed`, by the kernel for inputs of those types."""
        arrays = dict(zip(self._text.inputs, inputs, strict=True))
        return cast(
            "list[Any]",
            self._mx.fast.precompiled_cuda_kernel(
                name=self.name,
                compiled_source=self.code(typed or inputs, output_dtypes),
                inputs=inputs,
                output_shapes=output_shapes,
                output_dtypes=output_dtypes,
                scalars=[size for key in self._shapes for size in arrays[key].shape],
                grid=grid,
                threadgroup=threadgroup,
                shared_memory=self.shared_bytes,
                ensure_row_contiguous=True,
            ),
        )
