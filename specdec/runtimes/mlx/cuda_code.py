"""Machine code of CUDA kernels, kept in the cache folder.

MLX compiles custom kernels again in every process, which takes seconds for each. Here NVRTC, which MLX
comes with, compiles it once, as MLX would: the same options, for the GPU at hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from specdec import paths
from specdec.errors import RuntimeUnavailableError
from specdec.interrupts import unless_signalled
from specdec.runtimes.mlx.device import CudaDriver
from specdec.whole_file import whole_file

_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")
_CHECK_BYTES = hashlib.sha256().digest_size  # in front of the code in a file
# What types of parameters need.
_HEADERS = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"
# By the names of MLX's types.
_TYPES = {"uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int", "int32": "int"}
_TYPES |= {"int64": "long long", "float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}


class CudaCompiler:
    """NVRTC for the GPUs of one architecture.

    Args:
        architecture: as the compiler calls it: "sm_90a".
        includes: folders with the headers of CUDA and of its C++ library.

    Raises:
        OSError: NVRTC is not there.
    """

    def __init__(self, architecture: str, includes: list[Path]) -> None:
        self._library = _load()
        self._options = ["--device-as-default-execution-space", f"--gpu-architecture={architecture}"]
        self._options += [f"--include-path={folder}" for folder in includes]
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self._made_by = f"{architecture} NVRTC {major.value}.{minor.value}"

    def code(self, text: str) -> bytes:
        """Machine code of a text: from the cache folder, else compiled now and kept there where that can be done.

        Raises:
            RuntimeUnavailableError: it does not compile.
        """
        digest = hashlib.sha256(f"{self._made_by}\n{text}".encode()).hexdigest()[:32]
        file = paths.home() / "kernels" / f"{digest}.cubin"
        with contextlib.suppress(OSError):
            check, kept = (content := file.read_bytes())[:_CHECK_BYTES], content[_CHECK_BYTES:]
            if hashlib.sha256(kept).digest() == check:
                return kept
        made = self.compile(text)
        with contextlib.suppress(OSError):
            paths.private_folder(file.parent)
            with whole_file(file) as unfinished:
                unfinished.write_bytes(hashlib.sha256(made).digest() + made)
        return made

    def compile(self, text: str) -> bytes:
        """Machine code of a text.

        Raises:
            RuntimeUnavailableError: it does not compile.
        """
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"specdec.cu", 0, None, None)
        try:
            options = (ctypes.c_char_p * len(self._options))(*(option.encode() for option in self._options))
            if self._library.nvrtcCompileProgram(program, len(options), options):
                log = self._bytes("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
                told = log.decode(errors="replace").strip("\0 \n")
                raise RuntimeUnavailableError(f"a kernel does not compile on this GPU: {told[:2000]}")
            return self._bytes("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, size_of: str, get: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(size_of, program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(get, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeUnavailableError(f"the CUDA compiler refused {name} with status {status}")


@cache
def cuda_compiler(mlx: Path) -> CudaCompiler | None:
    """The compiler for this machine's GPU, or None where it or its headers are not found: MLX compiles then.

    Args:
        mlx: folder that MLX is installed in.
    """
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    packages = [mlx.parent / "nvidia" / name / "include" for name in ("cu13", "cuda_runtime")]
    cuda = next(
        (folder for folder in (*packages, Path(toolkit) / "include") if (folder / "cuda_fp16.h").exists()), None
    )
    if cuda is None:
        return None
    library = [folder for folder in (mlx / "include" / "cccl", cuda / "cccl") if folder.exists()]
    try:
        return CudaCompiler(CudaDriver().architecture, [*library, cuda])
    except unless_signalled(OSError):
        return None


def whole_text(
    name: str, header: str, source: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, shapes: Sequence[str]
) -> str:
    """A kernel's text with the signature that MLX would write around it, but for shapes, which come last.

    Args:
        name: of the kernel.
        header: text before it.
        source: its body.
        inputs: arrays by parameter name, in order.
        outputs: types of the results by parameter name.
        shapes: inputs whose sizes the body knows as `NAME_shape`.
    """
    parameters = [f"const {type_name(array.dtype)}* {key}" for key, array in inputs.items()]
    parameters += [f"{type_name(dtype)}* {key}" for key, dtype in outputs.items()]
    lines = ""
    for key in shapes:
        sizes = [f"{key}_size{axis}" for axis in range(inputs[key].ndim)]
        parameters += [f"int {size}" for size in sizes]
        lines += f"const int {key}_shape[] = {{{', '.join(sizes)}}};\n"
    return f'{_HEADERS}{header}\nextern "C" __global__ void {name}({", ".join(parameters)}) {{\n{lines}{source}\n}}\n'


def type_name(dtype: Any) -> str:
    """What CUDA calls one of MLX's types."""
    return _TYPES[str(dtype).rsplit(".", 1)[-1]]


def _load() -> ctypes.CDLL:
    """NVRTC, which MLX has loaded already."""
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise OSError(f"none of {', '.join(_LIBRARIES)} can be loaded")
