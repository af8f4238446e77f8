"""Runs CUDA kernels on the host: their text with C++ in place of PTX, compiled against `cuda_host/shim.h`.

`HostCuda` stands for the driver of a GPU. Those of several ranks, each on a thread of its own, run their kernels
together: they see each other's memory, as GPUs of one host do.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from specdec.runtimes.mlx.cuda_code import whole_text
from specdec.runtimes.mlx.kernels import KernelText

HERE = Path(__file__).parent / "cuda_host"
_MOST_TURNS = 1_000_000
_OPERAND = re.compile(r'"[^"]*"\(((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*)\)')

# Instructions, and C++ in their place: {0}, {1} and so on are operands, and the one after the last is 1.
_PLAIN = {
    r"m16n8k32": "tensor_product_of_bytes(sum, w, x0, x1);",
    r"mma\.sync.*\.bf16": "tensor_product(sum, w, x0, x1, __nv_bfloat16());",
    r"mma\.sync": "tensor_product(sum, w, x0, x1, __half());",
    r"mbarrier\.init": "::init_counter({0}, {1});",
    r"mbarrier\.arrive\.shared": "::arrive_at({0}, {1});",
    r"mbarrier\.test_wait": "{0} = ::counter_has_come({1}, {2}); let_others_run();",
    r"bar\.sync": "meet_some({0});",
    r"cp\.async\.bulk\.shared": "copy_bulk({all});",
    r"try_wait": "::wait_counter({0}, {1});",
    r"ld\.acquire": "{0} = *(volatile unsigned*)({1}); let_others_run();",
    r"cp\.async\.c[ag]\.[^;]*, (?P<size>\d+);": "std::memcpy(shared_at({0}), {1}, {size});",
    r'"red\.': "*(unsigned*)({0}) += {1};",
    r"atom\.": "{0} = (*(unsigned*)({1}))++;",
    r"globaltimer": "{0} = 0;",
    r"st\.volatile": "put_words({all});",
    r"ld\.volatile.*\.v2": "take_words({2}, {0}, {1}); let_others_run();",
    r"ld\.volatile.*\.v4": "take_words({4}, {0}, {1}, {2}, {3}); let_others_run();",
}


def compiler() -> str | None:
    """A C++ compiler that knows 16-bit floats, or None."""
    return os.environ.get("CXX") or shutil.which("g++")


def _plain(instruction: str) -> str:
    """C++ of an `asm` statement: that of the first line of `_PLAIN` which it matches."""
    given = _OPERAND.findall(instruction)
    for pattern, plain in _PLAIN.items():
        if found := re.search(pattern, instruction):
            return plain.format(*given, "1", all=", ".join(given), **found.groupdict())
    return ";"  # fences, prefetches, expected bytes


def host_text(text: str) -> str:
    """A kernel's whole text as C++."""
    parts, at = [], 0
    while (found := text.find("asm volatile(", at)) >= 0:
        end, depth, quoted = found + len("asm volatile"), 0, False
        while True:
            letter = text[end]
            quoted ^= letter == '"'
            depth += 0 if quoted else (letter == "(") - (letter == ")")
            end += 1
            if depth == 0 and not quoted:
                break
        parts.append(text[at:found] + _plain(text[found:end]))
        at = end + 1
    plain = "".join(parts) + text[at:]
    plain = re.sub(r"#include <cuda_\w+.h>", "", plain)
    return plain.replace("extern __shared__ uint4 shared_memory[];", "uint4* shared_memory = shared_of_block;")


class Grids:
    """The kernels of all ranks.

    Args:
        ranks: that run together.
        folder: for compiled kernels.
    """

    def __init__(self, ranks: int, folder: Path) -> None:
        self._folder, self._numbers, self._built = folder, itertools.count(), dict[bytes, Any]()
        self._meeting = threading.Barrier(ranks, self._run)
        self._given: dict[int, tuple[bytes, tuple[int, int], list[int]]] = {}

    def launch(self, rank: int, code: bytes, shape: tuple[int, int], pointers: list[int]) -> None:
        """Run a kernel, of blocks and threads, when all ranks have come; come back when all have run."""
        self._given[rank] = code, shape, pointers
        self._meeting.wait(600)

    def _run(self) -> None:
        blocks, threads = self._given[0][1]
        _scheduler()
        kernels = [self._kernel(self._given[rank][0]) for rank in sorted(self._given)]
        given = [(ctypes.c_void_p * 16)(*self._given[rank][2]) for rank in sorted(self._given)]
        entries = (ctypes.c_void_p * len(kernels))(*[ctypes.cast(kernel, ctypes.c_void_p) for kernel in kernels])
        places = (ctypes.c_void_p * len(given))(*map(ctypes.addressof, given))
        if _scheduler().run_grids(len(kernels), blocks, threads, 0, 0, entries, places, ctypes.c_long(_MOST_TURNS)):
            raise AssertionError("the kernels wait for each other for ever")

    def _kernel(self, code: bytes) -> Any:
        if code not in self._built:
            name = f"kernel{next(self._numbers)}"
            self._built[code] = _compiled(self._folder, name, _unit(code.decode()), ctypes.RTLD_LOCAL).run
        return self._built[code]


class HostKernels:
    """Stands for `kernels.build`: runs a kernel's blocks one after the other, on the host.

    Args:
        folder: for compiled kernels.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._built, self._lock = folder, dict[str, Any](), threading.Lock()

    def build(self, mx: Any, backend: str, text: KernelText, *, shared_bytes: int = 0) -> Any:
        assert backend == "cuda"
        assert not shared_bytes

        def run(
            *, inputs: Any, grid: Any, threadgroup: Any, output_shapes: Any, output_dtypes: Any, typed: Any = None
        ) -> list[Any]:
            del typed
            mx.eval(list(inputs))
            made = [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]
            mx.eval(made)
            held = [np.array(array, copy=False) for array in (*inputs, *made)]
            arrays = dict(zip(text.inputs, inputs, strict=True))
            results = dict(zip(text.outputs, output_dtypes, strict=True))
            shapes = [name for name in text.inputs if f"{name}_shape" in text.source]
            assert not shapes
            whole = whole_text("kernel", text.header, text.source, arrays, results, shapes=shapes)
            given = (ctypes.c_void_p * len(held))(*(array.ctypes.data for array in held))
            with self._lock:  # the scheduler runs one kernel at a time
                self._run(whole, (grid[0] // threadgroup[0], grid[1]), threadgroup[0], given)
            return made

        return run

    def _run(self, whole: str, blocks: tuple[int, int], threads: int, given: Any) -> None:
        scheduler = _scheduler()
        if whole not in self._built:
            name = f"phase{len(self._built)}"
            self._built[whole] = _compiled(self._folder, name, _unit(whole), ctypes.RTLD_LOCAL).run
        entries = (ctypes.c_void_p * 1)(ctypes.cast(self._built[whole], ctypes.c_void_p))
        places = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        for line in range(blocks[1]):
            for first in range(blocks[0]):
                most = ctypes.c_long(_MOST_TURNS)
                assert not scheduler.run_grids(1, 1, threads, first, line, entries, places, most)


def _compiled(folder: Path, name: str, source: str, mode: int) -> Any:
    file, library = folder / f"{name}.cpp", folder / f"{name}.so"
    file.write_text(source)
    command = [compiler() or "g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-ffp-contract=off"]
    subprocess.run([*command, f"-I{HERE}", str(file), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library), mode)


@cache
def _scheduler() -> Any:
    """What runs the threads; loaded once, since kernels find it by its names."""
    with tempfile.TemporaryDirectory() as folder:
        return _compiled(Path(folder), "fibers", (HERE / "fibers.cpp").read_text(), ctypes.RTLD_GLOBAL)


def _unit(text: str) -> str:
    """A kernel as a library with the entry `run`, which takes the addresses of its arguments."""
    plain = host_text(text)
    found = re.search(r'extern "C" __global__ void (\w+)\(([^)]*)\)', plain)
    assert found
    types = [parameter.strip().rsplit(" ", 1)[0] for parameter in found[2].split(",")]
    casts = [f"({kind})" if "*" in kind else "(int)(std::intptr_t)" for kind in types]
    call = ", ".join(f"{cast}given[{number}]" for number, cast in enumerate(casts))
    plain = plain.replace(found[0], f"static void {found[1]}({found[2]})")
    return f'#include "shim.h"\n{plain}\nextern "C" void run(void** given) {{ {found[1]}({call}); }}\n'


class HostCuda:
    """The driver of one rank's GPU, whose memory is the host's.

    Args:
        rank: of this driver.
        grids: runs the kernels.
        multiprocessors: of each GPU.
    """

    generation, shared_bytes, bytes_per_s = 9, 227 * 1024, 4.8e12

    def __init__(self, rank: int, grids: Grids, multiprocessors: int = 2) -> None:
        self._rank, self._grids, self.multiprocessors = rank, grids, multiprocessors
        self._held: list[np.ndarray] = []
        self._codes: list[bytes] = []

    def shared_memory(self, nbytes: int) -> int:
        self._held.append(np.zeros(nbytes + 256, np.uint8))
        return -(-self._held[-1].ctypes.data // 256) * 256

    def handle_of(self, address: int) -> bytes:
        return address.to_bytes(64, "little")

    def open_handle(self, handle: bytes) -> int:
        return int.from_bytes(handle, "little")

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def read(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def function(self, code: bytes, name: str, *, shared_bytes: int) -> int:
        assert shared_bytes <= self.shared_bytes
        self._codes.append(code)
        return len(self._codes) - 1

    def launch(self, function: int, shape: Sequence[int], parameters: Any) -> None:
        pointers = [ctypes.cast(place, ctypes.POINTER(ctypes.c_int64))[0] for place in parameters]
        self._grids.launch(self._rank, self._codes[function], (shape[0], shape[3]), pointers)

    def wait(self) -> None:
        pass
