"""Prompts of quantised models on CUDA: wide passes as in `prompt`, with the arithmetic of `step_quant`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.kernels.reference.recycle import TOP
from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.cuda_code import CudaCompiler, cuda_compiler
from specdec.runtimes.mlx.device import PlainLaunch
from specdec.runtimes.mlx.kernels import Constant, define, part, prelude
from specdec.runtimes.mlx.model import Kind, Transformer
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.prompt import Prompts, few
from specdec.runtimes.mlx.prompt_dense import DensePrompts
from specdec.runtimes.mlx.prompt_work import ROW_BAND, Tree, Work
from specdec.runtimes.mlx.state import CHOOSING_CONSTANTS, PATHS, STATE_CONSTANTS
from specdec.runtimes.mlx.step import CHOICE_WORDS, SHARED_KB, THREADS, TOP_WORDS
from specdec.runtimes.mlx.step_quant import TILE, QuantStep

_STAGES = 4  # of the ring of units and rows
_FEW_ROWS = 32  # of a block where there are few tiles
_BANDS = {8: (4, 32), 16: (4, 18)}  # of `decode_multiply`: groups of warps and slots for sums, by rows
_MOST_DEPTH = 4  # units under way of a group of warps
_WARPS = THREADS // 32  # of a block of the step
_SITES = ((0, 1, 2), (3,), (4, 5), (6,))  # matrices that take the same rows
_KIND = Kind("quant", False, 16, 0, 16)


class QuantPrompts(Prompts):
    """Passes over prompts of a quantised model; see `Prompts`."""

    _step: QuantStep
    _looks_at_parts = True

    def __init__(self, mx: Any, step: QuantStep, entries: list[list[Any]], compiler: CudaCompiler) -> None:
        super().__init__(mx, step, entries, compiler)
        c = self.config
        self._hidden, self._mixed, self._inner = (
            padded(width) for width in (c.hidden_size, c.num_heads * c.head_dim, c.intermediate_size)
        )
        self._widest = max(self._hidden, self._mixed, self._inner)

    def text(self, *, decodes: bool = False) -> str:
        """See `Prompts.text`."""
        constants: dict[str, Constant] = self._step.kernel_constants(_KIND) | STATE_CONSTANTS
        tiles = [tiles for tiles, _, _, _ in self._step.segments]
        constants |= {"TREE": 0, "SHARED_STEP": 0, "PROMPT_UNIT_BYTES": self._unit_bytes} | CHOOSING_CONSTANTS
        constants |= {"CHOICE_WORDS": CHOICE_WORDS, "DECODES": decodes, "RECYCLES": decodes, "SUCCESSORS": TOP}
        constants |= {"TURN_KEYS": tiles[0] * TILE, "TURN_VALUES": (tiles[0] + tiles[1]) * TILE}
        for band, (groups, slots) in _BANDS.items() if decodes else ():
            sizes = {"GROUPS": groups, "DEPTH": self._depth(band), "SLOTS": slots}
            constants |= {f"DECODE_{name}_{band}": size for name, size in sizes.items()}
        files = ["step_grid.cuh", "step_rows.cuh", "step_choice.cuh", "step_attention.cuh", "step_portions.cuh"]
        files += ["step_quant_units.cuh", "step_quant.cuh", "prompt_attention.cuh"]
        files += ["step_choose.cuh", "step_recycle.cuh", "prompt_decode.cuh"] if decodes else []
        files += ["prompt_quant.cuh", *(["decode_quant.cuh", "decode_tree.cuh"] if decodes else [])]
        return "".join((prelude("cuda"), define(constants), *(part("cuda", name) for name in files)))

    def turn_work(self, rows: int, reach: int, angles: Any, state: int) -> Work:
        """A turn over a tree, whose rows a kernel puts into the table.

        Args:
            rows: of the graph.
            reach: positions that its rows may have at least.
            angles: see `run`.
            state: address of the turn's state.
        """
        about, splits = self._begin_work(angles, decodes=True), few(-(-reach // SPAN))
        places = self._places(padded(rows, ROW_BAND), splits, logits=False, decodes=True)
        tables = (about, 0, 0, self._angles[1], 0, rows)
        return Work(rows, splits, *tables, places, decodes=True, chains=True, paths=state + 4 * PATHS)

    def recorded_turn(self, work: Work, tree: Tree) -> list[PlainLaunch]:
        """The launches of a turn that drafts a tree, verifies it and keeps what was right: `decode_tree.cuh`.

        Args:
            work: of `turn_work`.
            tree: where the turn finds what is not of the pass.
        """
        places, grid = work.places, self._step.grid
        with self._recording() as launches:
            spare = (tree.spare, tree.spare_positions)
            self._launch("tree_begin", (1, 1, 1), tree.state, work.about, work.rows, *spare)
            self._layers(work)
            self._head(work, 0, work.rows)
            sums = (places["sums"], work.padded_rows)
            self._launch("tree_look", (grid, work.rows, 1), tree.state, *sums, places["found"], places["tops"])
            shown = (work.rows, tree.shown)
            self._launch("tree_end", (grid, 1, 1), tree.state, places["found"], places["tops"], *shown)
        return launches

    def forgetting(self, state: int) -> PlainLaunch:
        """The launch after which turns of the text in this state know no other text, once there is `turn_work`."""
        return PlainLaunch(self._functions["tree_forget"][0], (self._step.grid, 1, 1), THREADS, 0, (state,))

    @property
    def _unit_bytes(self) -> int:
        """The largest unit with its head."""
        forms = self._step.forms
        return max(2048 + 512 * form.rest + (256 if form.own else 0) + (512 if form.offset else 256) for form in forms)

    def _kernels(self, *, decodes: bool) -> dict[str, tuple[int, int]]:
        steps = max(steps for _, steps, _, _ in self._step.segments)
        made = {}
        multiplications = {"prompt_multiply": ROW_BAND, "prompt_multiply_few": _FEW_ROWS}
        if decodes:
            made = dict.fromkeys(("decode_norm", "decode_gate", "decode_look_parts"), (THREADS, 0))
            made |= dict.fromkeys(("tree_forget", "tree_begin", "tree_look", "tree_end"), (THREADS, 0))
            made["decode_turn"] = 256, 0
            for band, (groups, slots) in _BANDS.items():
                stages = groups * self._depth(band) * (self._unit_bytes + band * (64 + 16))
                made[f"decode_multiply_{band}"] = groups * 64, stages + slots * band * (TILE + 8) * 4 + 2 * _WARPS * 4
            multiplications = {}
        for name, rows in multiplications.items():
            stage = self._unit_bytes + rows * (64 + 16)
            made[name] = 256, _STAGES * stage + rows * TILE * 4 + steps
        return made

    def _sizes(self, rows: int, *, decodes: bool) -> dict[str, int]:
        segments = self._step.segments
        columns = max(self._columns(which) for which in _SITES)
        if decodes:
            sites = (*_SITES, (7,))
            columns = max(TILE * sum(segments[number][0] + segments[number][3] for number in which) for which in sites)
        tops = {"tops": rows * self._step.grid * TOP_WORDS} if decodes else {}
        return tops | {
            "sums": rows * columns,
            "words": rows * self._widest // 2,
            "groups": rows * self._widest // 8,
            "scales": rows,
        }

    def _columns(self, which: Sequence[int]) -> int:
        """Floats of a row of sums of these matrices."""
        return TILE * sum(self._step.segments[number][0] for number in which)

    def _embed(self, work: Work) -> None:
        table, forms = self._table[-1][2], self._table[-1][4]
        self._launch("prompt_embed", (work.rows, 1, 1), work.about, table, forms >> 8 & 255, work.places["x"])

    def _head(self, work: Work, which: int, count: int) -> None:
        self._norm(work, self._table[-1][1], (6,), (which, count))
        (tiles, steps, begin, blocks), places, last = self._step.segments[7], work.places, self._table[-1]
        if work.decodes:
            about = (steps, *self._inputs(work), places["scales"], places["sums"], work.padded_rows)
            matrix = (last[0], last[4] & 255, tiles, begin, blocks, 0)
            self._begin_shares(count, blocks, (*about, *matrix, *[0] * 12))
            return
        about = (steps, places["words"], places["groups"], ROW_BAND, places["scales"], places["logits"], tiles * TILE)
        matrix = (last[0], last[4] & 255, tiles, begin, blocks, 0)
        arguments = (*about, *matrix, *[0] * 12)
        self._begin(count, tiles, arguments)

    def _look(self, work: Work) -> None:
        places, grid = work.places, (self._step.grid, work.rows, 1)
        self._launch("decode_look_parts", grid, places["sums"], work.padded_rows, places["found"])

    @property
    def _head_columns(self) -> int:
        return self._columns((7,))

    def _project(self, number: int, entries: list[int], work: Work) -> None:
        self._norm(work, entries[0], (6,) if number else ())
        self._multiply((0, 1, 2), entries, work)
        if work.chains:
            self._turn(number, entries, work, work.padded_rows, name="decode_turn")
        elif not work.decodes:
            self._turn(number, entries, work, self._columns((0, 1, 2)))

    def _attend(self, number: int, entries: list[int], work: Work) -> None:
        places, inputs = work.places, (*self._inputs(work), work.places["scales"])
        # Attention makes whole numbers of the heads.
        mixes = work.decodes and work.splits == 1 and self.config.head_dim % 32 == 0
        if work.decodes:
            to = (places["words"], places["groups"], places["scales"]) if mixes else (0, 0, 0)
            self._attend_rows(number, entries, work, work.padded_rows, entries[19], *to)
        else:
            self._attention(number, entries[19], work)
        if not mixes:
            grid = self._threads_for(work.rows * self._mixed // 4)
            self._launch("prompt_mix", grid, places["splits"], work.about, work.splits, work.rows, *inputs)
        self._multiply((3,), entries, work)

    def _mlp(self, entries: list[int], work: Work) -> None:
        self._norm(work, entries[1], (3,))
        self._multiply((4, 5), entries, work)
        grid, sums = self._threads_for(work.rows * self._inner // 4), work.places["sums"]
        inputs = (*self._inputs(work), work.places["scales"])
        if work.decodes:
            self._launch("decode_gate", grid, sums, work.rows, *inputs)
        else:
            widths = (self._columns((4, 5)), self._columns((4,)))
            self._launch("prompt_gate", grid, sums, *widths, work.rows, *inputs)
        self._multiply((6,), entries, work)

    def _norm(self, work: Work, weight: int, added: Sequence[int], listed: tuple[int, int] | None = None) -> None:
        """Norm of x plus sums of a matrix, if any; of all rows, or of a list's: its address and length."""
        places, (which, count) = work.places, listed or (0, work.rows)
        if work.decodes:
            sums = (places["x"], places["sums"] if added else 0, *(added or (0,)), weight)
            self._launch("decode_norm", (count, 1, 1), *sums, *self._inputs(work), places["scales"])
            return
        columns = self._columns(added)
        sums = (places["x"], places["sums"] if columns else 0, columns, weight, which)
        inputs = (places["words"], places["groups"], ROW_BAND if listed else work.padded_rows)
        self._launch("prompt_norm", (count, 1, 1), *sums, *inputs, places["scales"])

    def _multiply(self, which: Sequence[int], entries: list[int], work: Work) -> None:
        """Sums of matrices that take the same rows, side by side."""
        segments, places = self._step.segments, work.places
        matrices, column = [], 0
        for number in which:
            tiles, _, begin, blocks = segments[number]
            matrices += [entries[4 + number], entries[18] >> (8 * number) & 255, tiles, begin, blocks, column]
            column += tiles + blocks if work.decodes else tiles * TILE
        matrices += [0] * (18 - len(matrices))
        columns = work.padded_rows if work.decodes else column
        arguments = (segments[which[0]][1], *self._inputs(work), places["scales"], places["sums"], columns, *matrices)
        if work.decodes:
            blocks = sum(segments[number][3] for number in which)
            self._begin_shares(work.rows, blocks, arguments)
        else:
            self._begin(work.rows, sum(segments[number][0] for number in which), arguments)

    def _begin_shares(self, rows: int, blocks: int, arguments: Sequence[int]) -> None:
        """Begin a multiplication by the blocks of the step. A pass has one kernel for all of them: two do not fit the
        instruction cache together."""
        band = next((band for band in _BANDS if band >= rows), max(_BANDS))
        self._launch(f"decode_multiply_{band}", (-(-rows // band), blocks, 1), *arguments)

    def _depth(self, band: int) -> int:
        """Units that a group of warps asks for at a time, as far as a block has memory."""
        groups, slots = _BANDS[band]
        room = SHARED_KB * 1024 - slots * band * (TILE + 8) * 4 - 2 * _WARPS * 4
        return min(_MOST_DEPTH, room // (groups * (self._unit_bytes + band * (64 + 16))))

    def _begin(self, rows: int, tiles: int, arguments: Sequence[int]) -> None:
        """Begin a multiplication, with smaller blocks where large ones would leave multiprocessors idle."""
        bands = -(-rows // ROW_BAND)
        if bands * tiles >= 2 * self._step.grid:
            self._launch("prompt_multiply", (bands, tiles, 1), *arguments)
        else:
            self._launch("prompt_multiply_few", (-(-rows // _FEW_ROWS), tiles, 1), *arguments)

    def _inputs(self, work: Work) -> tuple[int, int, int]:
        """Words and groups of the rows, and how many rows there is memory for."""
        return work.places["words"], work.places["groups"], work.padded_rows


def prompts_of(mx: Any, transformer: Transformer) -> Prompts | None:
    """Passes over prompts of a model; None where a step is not one kernel, or there is no compiler."""
    t, step = transformer, transformer.whole
    compiler = None if step is None else cuda_compiler(Path(mx.__file__).parent)
    if step is None or compiler is None:
        return None
    if isinstance(step, QuantStep):
        return QuantPrompts(mx, step, step.entries(_KIND, t.layers, t.head, t.final_norm, t.embeddings), compiler)
    kind = Kind("dense", False, 1, 0, 1)
    return DensePrompts(mx, step, step.entries(kind, t.layers, t.head, t.final_norm, t.embeddings), compiler)
