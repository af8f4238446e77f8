"""Runs the Metal kernels on the host: their text as MLX gets it, the signature that MLX would write around it, compiled
as C++ against `metal_host/shim.h`. No Metal and no GPU; arithmetic is IEEE float32 as written."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from specdec.runtimes.mlx.kernels import KernelText

HERE = Path(__file__).parent / "metal_host"
# MLX's names of types in Metal, and how many elements an input has before it moves from constant to device memory.
TYPES = {"float16": "half", "float32": "float", "int32": "int32_t", "uint32": "uint32_t", "uint8": "uint8_t"}
TYPES |= {"bfloat16": "bfloat16_t"}
MOST_CONSTANT = 8
ATTRIBUTES = ("thread_position_in_threadgroup", "threadgroup_position_in_grid", "thread_position_in_grid")
SANITIZERS = {"": [], "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
              "thread": ["-fsanitize=thread", "-DSHIM_THREADS"]}  # fmt: skip


def compiler() -> str | None:
    """A C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def signature(text: KernelText, inputs: Sequence[tuple[str, np.ndarray]], outputs: Sequence[tuple[str, Any]]) -> str:
    """The kernel as MLX writes it: shapes and attributes are parameters where the body names them."""
    parameters = []
    for name, array in inputs:
        space = "constant" if array.size < MOST_CONSTANT else "device"
        parameters.append(f"const {space} {TYPES[_type(array)]}* {name}")
        if f"{name}_shape" in text.source:
            parameters.append(f"const constant int* {name}_shape")
    parameters += [f"device {TYPES[kind]}* {name}" for name, kind in outputs]
    parameters += [f"uint3 {name}" for name in ATTRIBUTES if name in text.source]
    return f"kernel void custom_kernel_{text.name}(\n  " + ",\n  ".join(parameters) + ") {\n"


def _type(array: np.ndarray) -> str:
    """Type by NumPy's name; uint16 stands for bfloat16, which NumPy has not."""
    return {"uint16": "bfloat16"}.get(array.dtype.name, array.dtype.name)


def program(text: KernelText, inputs: Sequence[tuple[str, np.ndarray]], outputs: Sequence[tuple[str, Any]]) -> str:
    """A C++ program that runs the kernel; its arguments are the grid's x and y, the threads, and files."""
    call, index = [], 0
    lines = ["std::size_t size;"]
    for name, array in inputs:
        lines.append(f"auto {name}_data = shim::read_file(files[{index}], size);")
        call.append(f"({TYPES[_type(array)]}*){name}_data")
        if f"{name}_shape" in text.source:
            lines.append(f"const int {name}_shape[] = {{{', '.join(map(str, array.shape))}}};")
            call.append(f"{name}_shape")
        index += 1
    for name, kind in outputs:
        lines.append(f"auto {name}_data = shim::read_file(files[{index}], size); const std::size_t {name}_size = size;")
        call.append(f"({TYPES[kind]}*){name}_data")
        index += 1
    places = ("uint3{uint(t), 0, 0}", "uint3{x, y, 0}", "uint3{x * uint(threads) + t, y, 0}")
    call += [place for name, place in zip(ATTRIBUTES, places, strict=True) if name in text.source]
    writes = [f"shim::write_file(files[{len(inputs) + n}], {name}_data, {name}_size);"
              for n, (name, _) in enumerate(outputs)]  # fmt: skip
    # In/out inputs (the caches) are written back too: the kernel writes them in place.
    writes += [f"shim::write_file(files[{n}], {name}_data, {array.nbytes});"
               for n, (name, array) in enumerate(inputs) if name.startswith("cache")]  # fmt: skip
    return f"""#include "shim.h"
extern char __start_threadgroup_memory[] __attribute__((weak));
extern char __stop_threadgroup_memory[] __attribute__((weak));
{text.header}
{signature(text, inputs, outputs)}{text.source}
}}
#undef threadgroup
#undef thread
int main(int, char** arguments) {{
  const uint columns = std::atoi(arguments[1]), rows = std::atoi(arguments[2]);
  const int threads = std::atoi(arguments[3]);
  char** files = arguments + 4;
  {" ".join(lines)}
  const std::size_t shared = __stop_threadgroup_memory - __start_threadgroup_memory;
  shim::check_memory(shared);
  for (uint y = 0; y < rows; ++y) {{
    for (uint x = 0; x < columns; ++x) {{
      if (shared) std::memset(__start_threadgroup_memory, 0xff, shared);  // NaN: nothing may read what nothing wrote
      shim::run_group(threads, [&](int t) {{ custom_kernel_{text.name}({", ".join(call)}); }});
    }}
  }}
  {" ".join(writes)}
}}
"""


class HostKernels:
    """Compiles kernels once each and runs them.

    Args:
        folder: for programs; several processes may use it at once, and share what they compile.
        sanitizer: "", "address" (and undefined behaviour) or "thread".
    """

    def __init__(self, folder: Path, sanitizer: str = "") -> None:
        self.folder, self.sanitizer = folder, sanitizer
        self._files = folder / f"files-{os.getpid()}"  # inputs and outputs of a run
        self._files.mkdir(exist_ok=True)

    def run(
        self,
        text: KernelText,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[tuple[tuple[int, ...], str]],
        *,
        blocks: tuple[int, int],
        threads: int,
    ) -> list[np.ndarray]:
        """Outputs of one dispatch; inputs called `cache...` are changed in place. Outputs start as NaN, or 0xff bytes.

        Raises:
            AssertionError: it does not compile, a sanitizer objects, or the shim does; with what was said.
        """
        named = list(zip(text.inputs, [np.ascontiguousarray(array) for array in inputs], strict=True))
        kinds = list(zip(text.outputs, [kind for _, kind in outputs], strict=True))
        binary = self._compiled(program(text, named, kinds))
        files = []
        for name, array in named:
            files.append(self._files / f"{name}.bin")
            files[-1].write_bytes(array.tobytes())
        for name, (shape, kind) in zip(text.outputs, outputs, strict=True):
            files.append(self._files / f"{name}.bin")
            files[-1].write_bytes(b"\xff" * (int(np.prod(shape)) * np.dtype(kind).itemsize))
        command = [str(binary), *map(str, blocks), str(threads), *map(str, files)]
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        for name, array in named:
            if name.startswith("cache"):
                found = np.fromfile(self._files / f"{name}.bin", dtype=array.dtype).reshape(array.shape)
                inputs[list(text.inputs).index(name)][...] = found
        return [
            np.fromfile(self._files / f"{name}.bin", dtype=kind).reshape(shape)
            for name, (shape, kind) in zip(text.outputs, outputs, strict=True)
        ]

    def _compiled(self, source: str) -> Path:
        digest = hashlib.sha256(f"{source}{self.sanitizer}".encode()).hexdigest()[:20]
        binary = self.folder / digest
        with self._made_once(binary) as unfinished:
            if unfinished is not None:
                file = binary.with_suffix(".cpp")
                file.write_text(source)
                shim = self._shim()
                self._compile(["-I", str(shim), str(file), str(shim / "shim.o"), "-o", str(unfinished)])
        return binary

    def _shim(self) -> Path:
        """A folder with the shim, and its header compiled ahead: half of the time that a small kernel takes."""
        folder = self.folder / f"shim{self.sanitizer}"
        with self._made_once(folder) as unfinished:
            if unfinished is not None:
                unfinished.mkdir()
                for name in ("shim.h", "shim.cpp"):
                    shutil.copy(HERE / name, unfinished)
                self._compile(["-c", str(unfinished / "shim.cpp"), "-o", str(unfinished / "shim.o")])
                header = unfinished / "shim.h"
                self._compile(["-x", "c++-header", str(header), "-o", f"{header}.gch"])
        return folder

    @contextmanager
    def _made_once(self, path: Path) -> Iterator[Path | None]:
        """Where to make what becomes `path`; None when it is there. Other processes wait meanwhile."""
        if path.exists():
            yield None
            return
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                yield None
                return
            unfinished = path.with_name(f"{path.name}.unfinished")
            yield unfinished
            unfinished.rename(path)

    def _compile(self, arguments: list[str]) -> None:
        flags = [
            "-std=c++20",
            "-O1",
            "-g0",
            "-ffp-contract=off",
            "-pthread",
            "-w",
            *SANITIZERS[self.sanitizer],
        ]
        done = subprocess.run([str(compiler()), *flags, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
