"""Passes over many rows of models with 16-bit weights on CUDA: see `prompt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdec.runtimes.mlx.cuda_code import CudaCompiler
from specdec.runtimes.mlx.kernels import Constant, define, part, prelude
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.prompt import Prompts
from specdec.runtimes.mlx.prompt_work import ROW_BAND, Work
from specdec.runtimes.mlx.state import CHOOSING_CONSTANTS, STATE_CONSTANTS
from specdec.runtimes.mlx.step import CHOICE_WORDS, WholeStep

# Tiles of a block that multiplies, and stages of its ring, for matrices of many outputs and of few.
_MANY, _FEW = (8, 3), (4, 4)
_MULTIPLY_THREADS, _STAGE_UNITS = 256, 2  # a unit is 32 inputs


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A multiplication: tiles of 16 outputs, steps of 32 inputs."""

    tiles: int
    steps: int

    @property
    def columns(self) -> int:
        """Floats of a row of sums."""
        return 16 * self.tiles


class DensePrompts(Prompts):
    """Passes over prompts of a model with 16-bit weights; see `Prompts`."""

    def __init__(self, mx: Any, step: WholeStep, entries: list[list[Any]], compiler: CudaCompiler) -> None:
        super().__init__(mx, step, entries, compiler)
        c = self.config
        hidden, mixed, inner = (
            padded(width) for width in (c.hidden_size, c.num_heads * c.head_dim, c.intermediate_size)
        )
        outputs = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        self._qkv = _Matrix(-(-outputs // 16), hidden // 32)
        self._out = _Matrix(-(-c.hidden_size // 16), mixed // 32)
        self._both = _Matrix(inner // 8, hidden // 32)
        self._down = _Matrix(-(-c.hidden_size // 16), inner // 32)
        self._logits = _Matrix(-(-c.vocab_size // 16), hidden // 32)
        self._widest = max(hidden, mixed, inner)
        self._parts = 2 if step.weight_type == "bfloat_t" else 1  # parts of an activation

    def text(self, *, decodes: bool = False) -> str:
        """See `Prompts.text`."""
        c = self.config
        mixed, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        constants: dict[str, Constant] = self._step.sizes(16) | STATE_CONSTANTS
        constants |= {"TREE": 0, "SHARED_STEP": 0, "TILE": 16, "STAGES": 2, "SPLIT": self._parts}
        constants["CHOICE_WORDS"] = CHOICE_WORDS
        constants |= {"act_t": self._step.weight_type}
        constants |= {"TURN_KEYS": mixed, "TURN_VALUES": mixed + kv} | CHOOSING_CONSTANTS
        files = ["step_grid.cuh", "step_rows.cuh", "step_attention.cuh", "prompt_attention.cuh"]
        files += ["step_choose.cuh", "prompt_decode.cuh"] if decodes else ["prompt_multiply.cuh", "prompt_rows.cuh"]
        return "".join((prelude("cuda"), define(constants), *(part("cuda", name) for name in files)))

    def _kernels(self, *, decodes: bool) -> dict[str, tuple[int, int]]:
        if decodes:
            return {}
        steps = max(matrix.steps for matrix in (self._qkv, self._out, self._both, self._down))
        sizes = {"prompt_multiply": _MANY, "prompt_multiply_few": _FEW}
        return {name: (_MULTIPLY_THREADS, self._multiply_bytes(*size, steps)) for name, size in sizes.items()}

    def _multiply_bytes(self, tiles: int, stages: int, steps: int) -> int:
        """Shared memory of a block that multiplies."""
        stage = _STAGE_UNITS * (ROW_BAND * 64 * self._parts + tiles * 1024)
        return stages * stage + tiles * (ROW_BAND * 64 + steps)

    def _sizes(self, rows: int, *, decodes: bool) -> dict[str, int]:  # noqa: ARG002
        columns = max(matrix.columns for matrix in (self._qkv, self._out, self._both, self._down))
        return {"sums": rows * columns, "activation": rows * self._parts * self._widest // 2}

    def _embed(self, work: Work) -> None:
        self._launch("prompt_embed", (work.rows, 1, 1), work.about, self._table[-1][2], work.places["x"])

    def _head(self, work: Work, which: int, count: int) -> None:
        self._norm(work, self._table[-1][1], self._down.columns, (which, count))
        self._multiply(self._logits, self._table[-1][0], work, 1, "logits")

    @property
    def _head_columns(self) -> int:
        return self._logits.columns

    def _project(self, number: int, entries: list[int], work: Work) -> None:
        self._norm(work, entries[0], self._down.columns if number else 0)
        self._multiply(self._qkv, entries[4], work)
        if not work.decodes or work.chains:
            self._turn(number, entries, work, self._qkv.columns)

    def _attend(self, number: int, entries: list[int], work: Work) -> None:
        places, window = work.places, entries[16]
        if work.decodes:
            self._attend_rows(number, entries, work, self._qkv.columns, window)
        else:
            self._attention(number, window, work)
        grid = self._threads_for(work.rows * self._out.steps * 8)
        self._launch("prompt_mix", grid, places["splits"], work.about, work.splits, work.rows, places["activation"])
        self._multiply(self._out, entries[5], work)

    def _mlp(self, entries: list[int], work: Work) -> None:
        self._norm(work, entries[1], self._out.columns)
        self._multiply(self._both, entries[6], work)
        grid, places = self._threads_for(work.rows * self._down.steps * 8), work.places
        self._launch("prompt_gate", grid, places["sums"], self._both.columns, work.rows, places["activation"])
        self._multiply(self._down, entries[7], work)

    def _norm(self, work: Work, weight: int, columns: int, listed: tuple[int, int] | None = None) -> None:
        """Norm of x plus sums of this width, unless it is 0; of all rows, or of a list's: its address and length."""
        places, (which, count) = work.places, listed or (0, work.rows)
        sums = places["sums"] if columns else 0
        self._launch("prompt_norm", (count, 1, 1), places["x"], sums, columns, weight, which, places["activation"])

    def _multiply(
        self, matrix: _Matrix, weights: int, work: Work, bands: int | None = None, to: str = "sums"
    ) -> None:  # fmt: skip
        bands = work.padded_rows // ROW_BAND if bands is None else bands
        # Smaller blocks where large ones would leave multiprocessors idle.
        many = bands * matrix.tiles >= _MANY[0] * self._step.grid
        name, tiles = ("prompt_multiply", _MANY[0]) if many else ("prompt_multiply_few", _FEW[0])
        places = (weights, work.places["activation"], work.places[to])
        self._launch(name, (bands, -(-matrix.tiles // tiles), 1), matrix.tiles, matrix.steps, *places)
