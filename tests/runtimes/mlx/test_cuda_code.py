"""Machine code of CUDA kernels: the text that is compiled, and what is kept from process to process."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specdec.errors import RuntimeUnavailableError
from specdec.runtimes.mlx import cuda_code
from specdec.runtimes.mlx.cuda_code import CudaCompiler, whole_text
from specdec.runtimes.mlx.kernels import Compiled, KernelText

ELF = b"\x7fELF of a kernel"


class Library:
    """Stands for NVRTC: refuses a text with the word `wrong`, and counts what it compiles."""

    def __init__(self) -> None:
        self.compiled: list[bytes] = []
        self.options: list[bytes] = []

    def nvrtcVersion(self, major: Any, minor: Any) -> int:  # noqa: N802
        major._obj.value, minor._obj.value = 13, 2
        return 0

    def nvrtcCreateProgram(self, program: Any, text: bytes, *_: Any) -> int:  # noqa: N802
        self.compiled.append(text)
        return 0

    def nvrtcCompileProgram(self, _: Any, count: int, options: Any) -> int:  # noqa: N802
        self.options = list(options)
        assert count == len(self.options)
        return 6 if b"wrong" in self.compiled[-1] else 0

    def nvrtcGetProgramLogSize(self, _: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = 21
        return 0

    def nvrtcGetProgramLog(self, _: Any, buffer: Any) -> int:  # noqa: N802
        ctypes.memmove(buffer, b"line 3: no such type\0", 21)
        return 0

    def nvrtcGetCUBINSize(self, _: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = len(ELF)
        return 0

    def nvrtcGetCUBIN(self, _: Any, buffer: Any) -> int:  # noqa: N802
        ctypes.memmove(buffer, ELF, len(ELF))
        return 0

    def nvrtcDestroyProgram(self, _: Any) -> int:  # noqa: N802
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(cuda_code, "_load", lambda: found)
    return found


def test_a_text_is_compiled_once_and_kept(library: Library, home: Path) -> None:
    for _ in range(2):
        assert CudaCompiler("sm_90a", [Path("/cuda")]).code("a text") == ELF
    assert library.compiled == [b"a text"]
    assert b"--gpu-architecture=sm_90a" in library.options
    assert b"--include-path=/cuda" in library.options
    CudaCompiler("sm_80", []).code("a text")
    CudaCompiler("sm_90a", []).code("another")
    assert len(library.compiled) == len(list((home / "kernels").iterdir())) == 3


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda kept: kept[:-1], lambda kept: kept.replace(b"kernel", b"colonel")]
)
def test_what_was_damaged_is_compiled_again(library: Library, home: Path, damage: Callable[[bytes], bytes]) -> None:
    compiler = CudaCompiler("sm_90a", [])
    compiler.code("a text")
    (file,) = (home / "kernels").iterdir()
    kept = file.read_bytes()
    file.write_bytes(damage(kept))
    assert compiler.code("a text") == ELF
    assert file.read_bytes() == kept
    assert len(library.compiled) == 2


def test_a_folder_that_cannot_be_written_keeps_nothing(library: Library, home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "kernels").write_text("a file in its place")
    for _ in range(2):
        assert CudaCompiler("sm_90a", []).code("a text") == ELF
    assert len(library.compiled) == 2


def test_a_text_that_does_not_compile_is_refused_and_not_kept(library: Library, home: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"does not compile on this GPU: line 3: no such type$"):
        CudaCompiler("sm_90a", []).code("wrong")
    assert len(library.compiled) == 1
    assert not (home / "kernels").exists()


def array(kind: str, *shape: int) -> Any:
    return SimpleNamespace(dtype=f"mlx.core.{kind}", shape=shape, ndim=len(shape))


def test_the_signature_is_that_of_the_arrays() -> None:
    text = whole_text(
        "k", "// header", "y[0] = x_shape[1];", {"x": array("float16", 3, 5)}, {"y": "mlx.core.int64"}, shapes=["x"]
    )
    assert text == (
        "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"
        '// header\nextern "C" __global__ void k(const __half* x, long long* y, int x_size0, int x_size1) {\n'
        "const int x_shape[] = {x_size0, x_size1};\ny[0] = x_shape[1];\n}\n"
    )


def test_kernels_are_called_with_their_code_and_shapes() -> None:
    calls: list[dict[str, Any]] = []

    def run(**options: Any) -> list[str]:
        calls.append(options)
        return ["result"]

    asked: list[str] = []

    def code(text: str) -> bytes:
        asked.append(text)
        return ELF

    compiler: Any = SimpleNamespace(code=code)
    mx = SimpleNamespace(fast=SimpleNamespace(precompiled_cuda_kernel=run))
    kernel = Compiled(mx, KernelText("name", "", "y[0] = x_shape[0];", ("x", "z"), ("y",)), compiler, 123)
    options: dict[str, Any] = {"grid": (4, 1, 1), "threadgroup": (2, 1, 1), "output_shapes": [(1,)]}
    for kind in ("float16", "float16", "float32"):
        inputs = [array(kind, 7, 9), array("uint8", 2)]
        assert kernel(inputs=inputs, output_dtypes=["mlx.core.float32"], **options) == ["result"]
    assert [call["scalars"] for call in calls] == [[7, 9]] * 3
    assert all(call["shared_memory"] == 123 and call["name"] == "custom_kernel_name" for call in calls)
    assert ["const __half* x" in text for text in asked] == [True, False]


def test_nvrtc_compiles_a_kernel(home: Path) -> None:
    """The real compiler, where it is installed; no GPU is needed."""
    try:
        compiler = CudaCompiler("sm_90", [])
    except OSError as error:
        pytest.skip(str(error))
    assert compiler.code('extern "C" __global__ void k(float* y) { y[threadIdx.x] = 1; }').startswith(b"\x7fELF")
    with pytest.raises(RuntimeUnavailableError, match="does not compile on this GPU"):
        compiler.code('extern "C" __global__ void k(float* y) { y[0] = nothing; }')
    assert len(list((home / "kernels").iterdir())) == 1


def test_kernels_know_no_shape_but_that_of_the_cache() -> None:
    """Others would not be passed: sizes are constants of the text, and strides are those of whole arrays."""
    for file in resources.files("specdec.kernels.cuda").iterdir():
        text = file.read_text(encoding="utf-8") if file.name.endswith((".cu", ".cuh")) else ""
        assert set(re.findall(r"\w+_(?:shape|strides|ndim)\b", text)) <= {"cache_shape"}, file.name
