"""Steps as one CUDA kernel on the host: the kernel's text, compiled as C++ against `cuda_host`, with its few lines of
machine code replaced. What depends on the timing of a GPU, it shows only as far as blocks overtake one another."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from metal_host_kernels import compiler

from specdec.runtimes.mlx import step as mlx_step
from specdec.runtimes.mlx.cuda_code import whole_text
from specdec.runtimes.mlx.kernels import KernelText
from specdec.runtimes.mlx.model import Kind
from specdec.runtimes.mlx.state import MAX_ROWS, MOST_AHEAD, chain, state_of

HERE = Path(__file__).parent / "cuda_host"
GRID = 6  # blocks, at least as many as rows
# Functions of machine code, by how they begin, and what they are here.
_BODIES = {
    r"DEVICE void multiply_tile\(.*__half\) \{": "host::multiply_tile<false>(sum, w, x0, x1);",
    r"DEVICE void multiply_tile\(.*__nv_bfloat16\) \{": "host::multiply_tile<true>(sum, w, x0, x1);",
    r"DEVICE void copy16(_shared)?\(void\* to, const void\* from\) \{": "std::memcpy(to, from, 16);",
    r"DEVICE void copy4\(void\* to, const void\* from\) \{": "std::memcpy(to, from, 4);",
    r"DEVICE void multiply_bytes\(.*const uint2& x\) \{": "const unsigned both[2] = {x.x, x.y};\n"
    "host::multiply_bytes<2>(sum, w, both);",
    r"DEVICE void multiply_bytes\(.*unsigned w0, unsigned w1, unsigned x\) \{": "const unsigned w[2] = {w0, w1};\n"
    "host::multiply_bytes<1>(sum, w, &x);",
    r"DEVICE void wait_stages\(\) \{": "",
    r"DEVICE void wait_group\(int group\) \{": "host::wait_pair();",
    r"DEVICE void after_others\(\) \{": "",
    r"DEVICE void end_stage\(\) \{": "",
    r"DEVICE void wait_stage\(\) \{": "",
    r"DEVICE void ahead\(const void\* from\) \{": "",
    r"DEVICE bool comes_last\(.*\) \{": "const bool last = ++*counter == unsigned(expected);\n"
    "if (last) *counter = 0;\nreturn last;",
    r"DEVICE unsigned look\(\) const \{": "return 0;",
    r"DEVICE void wait\(F meanwhile\) \{": "BARRIER();\nmeanwhile();\nhost::wait_grid();",
}


class Driver:
    """What a step asks of a GPU."""

    multiprocessors, generation, shared_bytes, architecture = GRID, 9, 232448, "sm_90a"


class Memory:
    """A driver whose device is the host: `send` copies to what is its own."""

    def __init__(self) -> None:
        self.held: list[np.ndarray] = []

    def own(self, count: int) -> np.ndarray:
        self.held.append(np.zeros(count + 8, np.int32))
        at = -self.held[-1].ctypes.data % 16 // 4
        return self.held[-1][at : at + count]

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send(self, address: int, array: np.ndarray) -> None:
        for held in self.held:
            at = (address - held.ctypes.data) // 4
            if 0 <= at < len(held):
                held[at : at + len(array)] = array


def host_text(text: str) -> str:
    """A kernel's text without machine code."""
    for beginning, body in _BODIES.items():
        for match in reversed(list(re.finditer(beginning, text))):
            depth, end = 1, match.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            text = f"{text[: match.end()]}\n{body}\n}}{text[end:]}"
    text = re.sub(r"#include <cuda_\w+\.h>|#pragma unroll.*", "", text)
    shared = "uint4* shared_memory = reinterpret_cast<uint4*>(host::shared[host::self / host::threads_of_block]);"
    return text.replace("extern __shared__ uint4 shared_memory[];", shared)


class HostSteps:
    """Runs steps of one model.

    Args:
        mx: MLX.
        step: of the model, made with `Driver`.
        monkeypatch: of the test.
        folder: for libraries.
    """

    def __init__(self, mx: Any, step: Any, monkeypatch: Any, folder: Path) -> None:
        self.mx, self.step, self.folder = mx, step, folder
        self._texts: list[tuple[KernelText, int]] = []
        self._libraries: dict[Kind, tuple[Any, int]] = {}
        self._kept: list[np.ndarray] = []

        def build(_mx: Any, _backend: str, text: KernelText, *, shared_bytes: int) -> KernelText:
            self._texts.append((text, shared_bytes))
            return text

        monkeypatch.setattr(mlx_step, "build", build)

    def _library(self, kind: Kind) -> tuple[Any, int]:
        if kind not in self._libraries:
            _, floats = self.step._kernel(kind)
            text, shared_bytes = self._texts[-1]
            arrays, made = dict(zip(text.inputs, self.step._inputs, strict=True)), (self.mx.float32, self.mx.uint32)
            shapes = [name for name in text.inputs if f"{name}_shape" in text.source]
            outputs = dict(zip(text.outputs, made, strict=True))
            whole = host_text(whole_text("whole_step", text.header, text.source, arrays, outputs, shapes=shapes))
            found = re.search(r"void whole_step\((.*?)\)", whole)
            assert found is not None
            kinds = [one.strip().rsplit(" ", 1)[0] for one in found[1].split(",")]
            pointers = [one for one in kinds if "*" in one]
            given = [f"({one})pointers[{n}]" for n, one in enumerate(pointers)]
            given += [f"numbers[{n}]" for n in range(len(kinds) - len(pointers))]
            file = self.folder / f"{text.name}.cpp"
            call = f"whole_step({', '.join(given)})"
            file.write_text(
                f'#include "cuda_host.h"\n{whole}\nstatic void** pointers;\nstatic int* numbers;\n'
                f'extern "C" void run_step(void** p, int* n, int backwards) {{\npointers = p, numbers = n;\n'
                f"host::run({GRID}, {mlx_step.THREADS}, {shared_bytes}, backwards, [] {{ {call}; }});\n}}\n"
            )
            library = file.with_suffix(".so")
            command = [str(compiler()), "-std=c++20", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC"]
            command += ["-I", str(HERE), str(file), str(HERE / "cuda_host.cpp"), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:3000]
            self._libraries[kind] = ctypes.CDLL(str(library)), floats
        return self._libraries[kind]

    def _placed(self, array: Any) -> int:
        """Address of a copy of an array, at a whole 16 bytes; numbers and None as in the table of a step."""
        if array is None or isinstance(array, int):
            return array or 0
        if not isinstance(array, np.ndarray):
            array = np.array(array.view(self.mx.uint16) if array.dtype.size == 2 else array)
        held = np.zeros(array.nbytes + 32, np.uint8)
        at = -held.ctypes.data % 16
        held[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._kept.append(held)
        return int(held.ctypes.data + at)

    def logits(
        self, kind: Kind, entries: list[list[Any]], cache: np.ndarray, angles: np.ndarray, take: np.ndarray,
        tokens: list[int], *, position: int, backwards: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Logits (tokens, V) of a step; blocks run in order, or backwards."""
        state = state_of([chain(tokens, position, wanted=len(tokens))], [cache.shape[3]])
        place = self._placed(cache)
        return self._run(kind, entries, cache.shape, place, angles, take, state, backwards=backwards)[0][: len(tokens)]

    def turns(
        self, kind: Kind, entries: list[list[Any]], cache: np.ndarray, angles: np.ndarray, state: np.ndarray,
        *, backwards: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Choices (turns, rows, 8) of a launch that drafts; the cache, at a whole 16 bytes, is written."""
        given = (kind, entries, cache.shape, cache.ctypes.data, angles, np.zeros(1, np.int32), state)
        choices = self._run(*given, backwards=backwards)[1]
        count = int(choices[0].view(np.int32)[0])
        return choices[1 : 1 + count * kind.rows].reshape(count, kind.rows, -1).copy()

    def _run(
        self, kind: Kind, entries: list[list[Any]], shape: tuple[int, ...], cache: int, angles: np.ndarray,
        take: np.ndarray, state: np.ndarray, *, backwards: bool,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Logits and choices of a step over the cache at an address."""
        library, floats = self._library(kind)
        logits = np.zeros((MAX_ROWS, self.step.config.vocab_size), np.float32)
        floats += self.step._split_floats(kind, shape[3])
        table = np.array([self._placed(entry) for line in entries for entry in line], np.int64)
        places = [self._placed(table), cache, self._placed(angles), self._placed(take), self._placed(state)]
        places += [self._placed(np.zeros(4096, np.uint32)), logits.ctypes.data]
        choices = np.zeros((1 + (1 + MOST_AHEAD) * MAX_ROWS, mlx_step.CHOICE_WORDS), np.float32)
        places += [choices.ctypes.data, self._placed(np.full(floats, np.nan, np.float32))]
        places.append(self._placed(np.zeros(2, np.uint32)))
        library.run_step((ctypes.c_void_p * 10)(*places), (ctypes.c_int * 5)(*shape), int(backwards))
        self._kept.clear()
        return logits, choices
