"""Prompts on CUDA: wide passes of up to 512 rows without logits, for models whose steps are one kernel.

The kernels (`kernels/cuda/prompt`) add every sum in the order of a step (`step`), so a prompt leaves the bits in the
cache that its tokens would leave one by one. They are launched through the driver, one after the other; the addresses
of weights are those of the step's table.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specdec.runtimes.mlx.cache import SPAN, GpuCache
from specdec.runtimes.mlx.cuda_code import CudaCompiler, cuda_compiler
from specdec.runtimes.mlx.kernels import Constant, define, part, prelude
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.state import STATE_CONSTANTS
from specdec.runtimes.mlx.step import SPLIT_SIZE, THREADS, WholeStep
from specdec.runtimes.mlx.step_quant import QuantStep

MOST_ROWS = 512  # of a pass
ROW_BAND = 64  # rows that a block multiplies
TILE_ROWS = 32  # rows of a sequence that a block of attention has
_WARPS = 8  # of a block that multiplies, with 16 outputs each
_STAGES, _STAGE_UNITS = 4, 2  # of the ring of rows; a unit is 32 inputs
_FILES = ("step_grid.cuh", "step_rows.cuh", "step_attention.cuh", "prompt_multiply.cuh")
_FILES += ("prompt_attention.cuh", "prompt_rows.cuh")
_ENTRY = 8  # whole numbers of a row or tile in the tables that the kernels read
_SPLIT_FLOATS = 1 << 26  # of what attention leaves for each row, head and split, at most


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one sequence: tokens that follow what its cache holds.

    Attributes:
        cache: where keys and values go; there is memory for them.
        tokens: of the rows.
        place: position of the first.
    """

    cache: GpuCache
    tokens: Sequence[int]
    place: int


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A multiplication: tiles of 16 outputs, steps of 32 inputs."""

    tiles: int
    steps: int

    @property
    def columns(self) -> int:
        """Floats of a row of sums."""
        return 16 * self.tiles


class Prompts:
    """Passes over prompts of one model with 16-bit weights.

    Args:
        mx: MLX.
        step: the model's steps.
        entries: what the table of a dense step says; see `WholeStep.entries`.
        compiler: of the kernels.
    """

    def __init__(self, mx: Any, step: WholeStep, entries: list[list[Any]], compiler: CudaCompiler) -> None:
        self._mx, self._step, self._compiler, self.config = mx, step, compiler, step.config
        self._entries = entries
        self._table: list[list[int]] = []
        self._functions: dict[str, tuple[ctypes.c_void_p, int, int]] = {}
        self._room: tuple[Any, int, int] = (None, 0, 0)  # array, its address, floats
        self._angles: tuple[Any, int] = (None, 0)
        self._about: tuple[Any, int] = (None, 0)
        c, mixed = self.config, self.config.num_heads * self.config.head_dim
        kv = c.num_kv_heads * c.head_dim
        self._qkv = _Matrix(-(-(mixed + 2 * kv) // 16), padded(c.hidden_size) // 32)
        self._out = _Matrix(-(-c.hidden_size // 16), padded(mixed) // 32)
        self._both = _Matrix(padded(c.intermediate_size) // 8, padded(c.hidden_size) // 32)
        self._down = _Matrix(-(-c.hidden_size // 16), padded(c.intermediate_size) // 32)

    def most_rows(self, place: int) -> int:
        """Most rows of a pass whose last row is at most at this position."""
        c = self.config
        each = c.num_heads * (place // SPAN + 1) * (c.head_dim + SPLIT_SIZE)
        return max(ROW_BAND, min(MOST_ROWS, _SPLIT_FLOATS // each // ROW_BAND * ROW_BAND))

    def run(self, parts: Sequence[Part], angles: Any) -> None:
        """Put keys and values of all rows into their caches; nothing else may be running.

        Args:
            parts: at most `most_rows` rows in all.
            angles: float32 (positions, D / 2, 2).
        """
        self._prepare()
        rows = sum(len(each.tokens) for each in parts)
        splits = max(each.place + len(each.tokens) - 1 for each in parts) // SPAN + 1
        about, tiles = self._tell(parts)
        places = self._places(padded(rows, ROW_BAND), splits)
        turns = self._address_of_angles(angles)
        embeddings = self._table[-1][2]
        self._launch("prompt_embed", (rows, 1, 1), about, embeddings, places["x"])
        for number, entries in enumerate(self._table[:-1]):
            self._attention(number, entries, places, rows, about, tiles, turns, splits)
            if number + 1 == self.config.num_layers:
                break
            self._mlp(entries, places, rows)
        self._step.driver.wait()

    def _attention(
        self, number: int, entries: list[int], places: dict[str, int], rows: int, about: int, tiles: tuple[int, int],
        turns: int, splits: int,
    ) -> None:  # fmt: skip
        """A layer's attention with its output projection; of the last layer only its keys and values."""
        c, sums, activation = self.config, places["sums"], places["activation"]
        self._launch(
            "prompt_norm", (rows, 1, 1), places["x"], sums if number else 0, self._down.columns, entries[0], activation
        )
        self._multiply(self._qkv, entries[4], places, rows)
        vectors = -(-(c.num_heads + 2 * c.num_kv_heads) // 8)
        self._launch(
            "prompt_turn", (rows, vectors, 1), sums, self._qkv.columns, about, turns, entries[2], entries[3], number,
            places["queries"],
        )  # fmt: skip
        if number + 1 == self.config.num_layers:
            return
        grid = (tiles[1], c.num_heads, splits)
        self._launch("prompt_attend", grid, places["queries"], tiles[0], number, entries[16], splits, places["splits"])
        grid = (-(-rows * padded(c.num_heads * c.head_dim) // 4 // THREADS), 1, 1)
        self._launch("prompt_mix", grid, places["splits"], about, splits, rows, activation)
        self._multiply(self._out, entries[5], places, rows)

    def _mlp(self, entries: list[int], places: dict[str, int], rows: int) -> None:
        """A layer's MLP; its product is added by the next layer."""
        x, sums, activation = places["x"], places["sums"], places["activation"]
        self._launch("prompt_norm", (rows, 1, 1), x, sums, self._out.columns, entries[1], activation)
        self._multiply(self._both, entries[6], places, rows)
        grid = (-(-rows * padded(self.config.intermediate_size) // 4 // THREADS), 1, 1)
        self._launch("prompt_gate", grid, sums, self._both.columns, rows, activation)
        self._multiply(self._down, entries[7], places, rows)

    def _multiply(self, matrix: _Matrix, weights: int, places: dict[str, int], rows: int) -> None:
        grid = (-(-rows // ROW_BAND), -(-matrix.tiles // _WARPS), 1)
        self._launch("prompt_multiply", grid, matrix.tiles, matrix.steps, weights, places["activation"], places["sums"])

    def _launch(self, name: str, grid: tuple[int, int, int], *arguments: int) -> None:
        function, threads, shared_bytes = self._functions[name]
        self._step.driver.launch(function, grid, threads, shared_bytes, arguments)

    def _tell(self, parts: Sequence[Part]) -> tuple[int, tuple[int, int]]:
        """Put the tables of rows and of tiles on the device: address of the first; address and length of the second."""
        table, rows, tiles = np.zeros((2 * MOST_ROWS, _ENTRY), np.int32), 0, 0
        for each in parts:
            count, address = len(each.tokens), self._step.address(each.cache)
            lines = table[rows : rows + count]
            lines[:, 0], lines[:, 1] = each.tokens, np.arange(each.place, each.place + count)
            lines[:, 2] = each.cache.positions
            lines[:, 4:6] = np.array([address], np.int64).view(np.int32)
            for first in range(0, count, TILE_ROWS):
                line = table[MOST_ROWS + tiles]
                line[:4] = rows + first, min(TILE_ROWS, count - first), each.place + first, each.cache.positions
                line[4:6] = lines[0, 4:6]
                tiles += 1
            rows += count
        if self._about[0] is None:
            array = self._step.own((2 * MOST_ROWS, _ENTRY), self._mx.int32)
            self._about = array, self._step.addresses([array])[0]
        address = self._about[1]
        self._step.driver.write(address, table)
        return address, (address + MOST_ROWS * _ENTRY * 4, tiles)

    def _places(self, rows: int, splits: int) -> dict[str, int]:
        """Addresses of what a pass keeps in device memory."""
        c, mixed = self.config, self.config.num_heads * self.config.head_dim
        widest = max(padded(c.hidden_size), padded(mixed), padded(c.intermediate_size))
        columns = max(matrix.columns for matrix in (self._qkv, self._out, self._both, self._down))
        sizes = {"x": rows * c.hidden_size, "sums": rows * columns, "queries": rows * mixed}
        sizes |= {"activation": rows * self._parts * widest // 2}
        sizes |= {"splits": rows * c.num_heads * splits * (c.head_dim + SPLIT_SIZE)}
        need = sum(padded(size, 64) for size in sizes.values())
        if self._room[2] < need:
            self._room = (None, 0, 0)
            array = self._step.own((need,), self._mx.float32)
            self._room = array, self._step.addresses([array])[0], need
        place, found = self._room[1], {}
        for name, size in sizes.items():
            found[name] = place
            place += 4 * padded(size, 64)
        return found

    def _address_of_angles(self, angles: Any) -> int:
        if self._angles[0] is not angles:
            self._angles = angles, self._step.addresses([angles])[0]
        return self._angles[1]

    @property
    def _parts(self) -> int:
        """16-bit parts of an activation."""
        return 2 if self._step.weight_type == "bfloat_t" else 1

    def _prepare(self) -> None:
        """Compile the kernels and look up the weights, unless that was done."""
        if self._functions:
            return
        flat = self._step.addresses([entry for line in self._entries for entry in line])
        for line in self._entries:
            self._table.append(flat[: len(line)])
            del flat[: len(line)]
        driver = self._step.driver
        module = driver.load(self._compiler.code(self.text()))
        for name, (threads, shared_bytes) in self._kernels().items():
            self._functions[name] = driver.function(module, name, shared_bytes), threads, shared_bytes

    def _kernels(self) -> dict[str, tuple[int, int]]:
        """Threads and bytes of dynamic shared memory of each kernel's blocks."""
        size = self.config.head_dim
        steps = max(matrix.steps for matrix in (self._qkv, self._out, self._both, self._down))
        multiply = _STAGES * _STAGE_UNITS * ROW_BAND * 64 * self._parts + _WARPS * (ROW_BAND * 64 + steps)
        attend = 4 * TILE_ROWS * ((SPAN + 4) + size + 2 * (SPAN // 16 + 1) + SPAN // 16)
        attend += padded(size // 4 * (SPAN + 1) * 8, 16) + (SPAN * size * 2 if size <= 64 else 16)
        made = {name: (THREADS, 0) for name in ("prompt_embed", "prompt_norm", "prompt_mix", "prompt_gate")}
        return made | {
            "prompt_multiply": (32 * _WARPS, multiply),
            "prompt_turn": (256, 0),
            "prompt_attend": (256, attend),
        }

    def text(self) -> str:
        """The kernels with the model's sizes."""
        constants: dict[str, Constant] = self._step.sizes(16) | STATE_CONSTANTS
        constants |= {"TREE": 0, "SHARED_STEP": 0, "TILE": 16, "STAGES": _STAGES, "SPLIT": self._parts}
        constants |= {"act_t": self._step.weight_type, "PROMPT_WARPS": _WARPS}
        return "".join((prelude("cuda"), define(constants), *(part("cuda", name) for name in _FILES)))


def prompts_of(mx: Any, transformer: Transformer) -> Prompts | None:
    """Passes over prompts of a model, or None where steps of 16 rows read them: it has 16-bit weights, a step is one
    kernel, and there is a compiler."""
    step, compiler = transformer.whole, cuda_compiler(Path(mx.__file__).parent)
    if step is None or isinstance(step, QuantStep) or compiler is None:
        return None
    t, kind = transformer, Kind("dense", False, 1, 0, 1)
    return Prompts(mx, step, step.entries(kind, t.layers, t.head, t.final_norm, t.embeddings), compiler)
