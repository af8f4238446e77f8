"""Prompts on CUDA: wide passes of up to 512 rows, for models whose steps are one kernel.

The kernels (`kernels/cuda/prompt`) add every sum in the order of a step (`step`), so a prompt leaves the bits in the
cache that its tokens would leave one by one. They are launched through the driver, one after the other; the addresses
of weights are those of the step's table. This file holds the parts that all models share; 16-bit weights are in
`prompt_dense`, quantised ones in `prompt_quant`.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from specdec.runtimes.mlx.cache import SPAN
from specdec.runtimes.mlx.cuda_code import CudaCompiler
from specdec.runtimes.mlx.device import PlainLaunch
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.prompt_work import ROW_BAND, Part, Work
from specdec.runtimes.mlx.state import MAX_ROWS
from specdec.runtimes.mlx.step import CHOICE_WORDS, SPLIT_SIZE, THREADS, WholeStep
from specdec.workers import run_together

MOST_ROWS = 512  # of a pass
TILE_ROWS = 32  # rows of a sequence that a block of attention has
_ENTRY = 8  # whole numbers of a row or tile in the tables that the kernels read
_TILES = MOST_ROWS * _ENTRY  # of the whole numbers on the device, where the table of tiles begins
_WHICH = 2 * MOST_ROWS * _ENTRY  # and the list of rows whose logits are wanted
_TABLE = _WHICH + MOST_ROWS
_MOST_SHAPES = 64  # of passes whose launches are kept
_ROOT = (1 << 31) - 1  # position from which a row that is not in a tree would have a path
_SPLIT_FLOATS = 1 << 26  # of what attention leaves for each row, head and split, at most

Grid = tuple[int, int, int]


def few(splits: int) -> int:
    """At least so many splits of attention, of few numbers, so that there are few kinds of graphs."""
    return 1 << (splits - 1).bit_length()


class Prompts(ABC):
    """Passes over prompts of one model, and what passes of `decode` launch.

    Args:
        mx: MLX.
        step: the model's steps.
        entries: what the table of a step says; see `WholeStep.entries`.
        compiler: of the kernels.
    """

    _looks_at_parts = False  # logits that tokens are chosen from are left in parts

    def __init__(self, mx: Any, step: WholeStep, entries: list[list[Any]], compiler: CudaCompiler) -> None:
        self._mx, self._step, self._compiler, self.config = mx, step, compiler, step.config
        self._entries = entries
        self._table: list[list[int]] = []
        self._codes: dict[bool, bytes] = {}  # machine code of the texts, until it is loaded
        self._functions: dict[str, tuple[ctypes.c_void_p, int, int]] = {}
        self._room: tuple[Any, int, int] = (None, 0, 0)  # array, its address, floats
        self._angles: tuple[Any, int] = (None, 0)
        self._about: tuple[Any, int] = (None, 0)
        self._host: np.ndarray | None = None
        self._launched: list[PlainLaunch] = []
        self._records = False  # launches are recorded, not begun
        self._launches: dict[tuple[int, ...], list[PlainLaunch]] = {}  # of a pass, by its shape

    @property
    def step(self) -> WholeStep:
        """The model's steps."""
        return self._step

    def compile(self, *, decodes: bool) -> None:
        """Compile kernels at the same time, or read their machine code; nothing else may need them meanwhile.

        Args:
            decodes: also those for passes that choose tokens.
        """
        missing = [
            which
            for which in ((False, True) if decodes else (False,))
            if which not in self._codes and not self._shapes(which).keys() <= self._functions.keys()
        ]
        made = run_together([partial(self._code, which) for which in missing])
        self._codes |= dict(zip(missing, made, strict=True))

    def most_rows(self, place: int) -> int:
        """Most rows of a pass whose last row is at most at this position."""
        c = self.config
        each = c.num_heads * (place // SPAN + 1) * (c.head_dim + SPLIT_SIZE)
        return max(ROW_BAND, min(MOST_ROWS, _SPLIT_FLOATS // each // ROW_BAND * ROW_BAND))

    def run(self, parts: Sequence[Part], angles: Any) -> list[np.ndarray]:
        """Put keys and values of all rows into their caches; nothing else may be running.

        Args:
            parts: at most `most_rows` rows in all.
            angles: float32 (positions, D / 2, 2).

        Returns:
            Logits float32 (wanted, V) of each part.
        """
        work = self.work(parts, angles)
        self._run_layers(work)
        logits = np.empty((work.wanted, self.config.vocab_size), np.float32)
        for first in range(0, work.wanted, ROW_BAND):
            self._read_logits(work, logits[first : first + ROW_BAND], first)
        self._step.driver.wait()
        ends = np.cumsum([each.wanted for each in parts])
        return [logits[end - each.wanted : end] for each, end in zip(parts, ends.tolist(), strict=True)]

    def _run_layers(self, work: Work) -> None:
        """Begin all layers: as the last pass of this shape did, if there was one."""
        shape = (work.rows, work.splits, work.tile_count, work.wanted > 0, work.angles, work.places["x"])
        if shape in self._launches:
            for launch in self._launches[shape]:
                self._step.driver.begin(launch)
            return
        self._launched = []
        self._layers(work)
        if len(self._launches) >= _MOST_SHAPES:
            self._launches.clear()
        self._launches[shape] = self._launched

    def _layers(self, work: Work) -> None:
        self._embed(work)
        for number, entries in enumerate(self._table[:-1]):
            self._project(number, entries, work)
            if work.wanted or number + 1 < self.config.num_layers:  # keys and values need no more of the last layer
                self._attend(number, entries, work)
                self._mlp(entries, work)

    def _read_logits(self, work: Work, logits: np.ndarray, first: int) -> None:
        """Logits of some of the wanted rows, from the first on; at most `ROW_BAND`."""
        self._launched = []
        self._head(work, work.which + 4 * first, len(logits))
        driver, columns = self._step.driver, self._head_columns
        if self._host is None:
            self._host = driver.pinned(4 * MAX_ROWS * columns).view(np.float32).reshape(MAX_ROWS, columns)
        driver.wait()
        for row in range(0, len(logits), MAX_ROWS):
            part = logits[row : row + MAX_ROWS]
            driver.read(work.places["logits"] + 4 * row * columns, self._host[: len(part)])
            part[:] = self._host[: len(part), : part.shape[1]]

    @abstractmethod
    def text(self, *, decodes: bool = False) -> str:
        """The kernels with the model's sizes: for prompts, or the further ones for passes of `decode`."""

    @abstractmethod
    def _kernels(self, *, decodes: bool) -> dict[str, tuple[int, int]]:
        """Threads and bytes of dynamic shared memory of each kernel's blocks."""

    @abstractmethod
    def _sizes(self, rows: int, *, decodes: bool) -> dict[str, int]:
        """Floats that a pass keeps in device memory, by name, in addition to those of attention."""

    @abstractmethod
    def _embed(self, work: Work) -> None:
        """Put the tokens' embeddings into x."""

    @abstractmethod
    def _head(self, work: Work, which: int, count: int) -> None:
        """The last norm and the logits layer of the rows in a list at this address."""

    def _look(self, work: Work) -> None:
        """What each block of a step would see of the logits of a row."""
        places, grid = work.places, (self._step.grid, work.rows, 1)
        self._launch("decode_look", grid, places["logits"], self._head_columns, places["found"])

    @property
    @abstractmethod
    def _head_columns(self) -> int:
        """Floats of a row of logits."""

    @abstractmethod
    def _project(self, number: int, entries: list[int], work: Work) -> None:
        """Norm, projections of queries, keys and values, and `_turn`."""

    @abstractmethod
    def _attend(self, number: int, entries: list[int], work: Work) -> None:
        """Attention and its output projection, whose sums are left."""

    @abstractmethod
    def _mlp(self, entries: list[int], work: Work) -> None:
        """A layer's MLP; the next layer adds its sums."""

    def _turn(self, number: int, entries: list[int], work: Work, columns: int, *, name: str = "prompt_turn") -> None:
        """Rotate queries and keys; keys and values go into the caches."""
        c, places = self.config, work.places
        grid = (work.rows, -(-(c.num_heads + 2 * c.num_kv_heads) // 8), 1)
        vectors = (entries[2], entries[3], number, places["queries"])  # biases, norms of heads
        self._launch(name, grid, places["sums"], columns, work.about, work.angles, *vectors)

    def _attention(self, number: int, window: int, work: Work) -> None:
        """What each row and head sees in each split."""
        places, grid = work.places, (work.tile_count, self.config.num_heads, work.splits)
        about = (work.tiles, number, window, work.splits)
        self._launch("prompt_attend", grid, places["queries"], *about, places["splits"])

    def _attend_rows(self, number: int, entries: list[int], work: Work, columns: int, window: int, *to: int) -> None:
        """The same of rows that are far from each other in the caches; unless they follow each other, `_turn`, too."""
        c, places = self.config, work.places
        grid = (work.rows, c.num_kv_heads * self._chunks(work.rows * work.splits), work.splits)
        vectors = (entries[2], entries[3], number, places["queries"] if work.chains else 0)
        sums = (places["sums"], columns, work.about, work.angles)
        self._launch("decode_attend", grid, *sums, *vectors, work.paths, window, work.splits, places["splits"], *to)

    def _chunks(self, splits: int) -> int:
        """Into how many parts heads that share keys are cut, where every row has a history of its own.

        Args:
            splits: of all rows.
        """
        c, grid = self.config, self._step.grid
        group = c.num_heads // c.num_kv_heads
        at_once, most = (2, 8) if c.head_dim <= 64 else (1, 4)
        counts = sorted({-(-group // each) for each in range(1, min(group, most) + 1)})

        def cost(count: int) -> int:
            """Of the blocks of a multiprocessor. Reading keys and values takes as long as three passes over heads."""
            each = -(-group // count)
            return -(-(splits * c.num_kv_heads * count) // grid) * (3 + -(-each // at_once))

        return min(counts, key=cost)

    def _threads_for(self, count: int) -> Grid:
        """Blocks for a thread each."""
        return -(-count // THREADS), 1, 1

    def _launch(self, name: str, grid: Grid, *arguments: int) -> None:
        """Begin a kernel, unless launches are only recorded, and keep the launch for the next pass of this shape."""
        launch = PlainLaunch(*self._functions[name][:1], grid, *self._functions[name][1:], arguments)
        if not self._records:
            self._step.driver.begin(launch)
        self._launched.append(launch)

    def recorded(self, work: Work, choices: int) -> list[PlainLaunch]:
        """The launches of a pass that chooses a token for each row and moves the row on to it.

        Args:
            work: the pass; all its rows are wanted.
            choices: address of float32 (passes since the rows were copied to the device, rows, CHOICE_WORDS).
        """
        with self._recording() as launches:
            self._layers(work)
            self._head(work, 0, work.rows)
            self._look(work)
            self._launch("decode_choose", (work.rows, 1, 1), work.places["found"], work.about, choices)
        return launches

    @contextmanager
    def _recording(self) -> Iterator[list[PlainLaunch]]:
        """Launches are recorded instead of begun."""
        self._records, self._launched = True, []
        try:
            yield self._launched
        finally:
            self._records, self._launched = False, []

    def work(self, parts: Sequence[Part], angles: Any, *, decodes: bool = False, ahead: int = 0) -> Work:
        """A pass over these rows, copied to the device.

        Args:
            parts: see `run`.
            angles: see `run`.
            decodes: for `recorded`.
            ahead: passes that follow it, each one position further.
        """
        about = self._begin_work(angles, decodes=decodes)
        rows, wanted = sum(len(each.tokens) for each in parts), sum(each.wanted for each in parts)
        splits = (max(each.place + len(each.tokens) for each in parts) + ahead - 1) // SPAN + 1
        if decodes:
            splits = few(splits)
        tile_count = self._tell(parts, about)
        logits = wanted > 0 and not (decodes and self._looks_at_parts)
        places = self._places(padded(rows, ROW_BAND), splits, logits=logits, decodes=decodes)
        tiles, which = about + 4 * _TILES, about + 4 * _WHICH
        chains = decodes and any(len(each.tokens) > 1 for each in parts)
        return Work(rows, splits, about, tiles, tile_count, self._angles[1], which, wanted, places, decodes, chains)

    def _begin_work(self, angles: Any, *, decodes: bool) -> int:
        """Have all that a pass needs but its rows; returns the address of the tables."""
        self._prepare()
        if decodes:
            self._load(decodes=True)
        if self._angles[0] is not angles:
            self._angles = angles, self._step.addresses([angles])[0]
        if self._about[0] is None:
            array = self._step.own((_TABLE,), self._mx.int32)
            self._about = array, self._step.addresses([array])[0]
        return self._about[1]

    def _tell(self, parts: Sequence[Part], about: int) -> int:
        """Put the tables of rows and tiles and the list of wanted rows on the device; how many tiles there are."""
        table, rows, tiles, wanted = np.zeros(_TABLE, np.int32), 0, 0, 0
        row_lines, tile_lines = table[:_WHICH].reshape(2, MOST_ROWS, _ENTRY)
        for each in parts:
            count, address = len(each.tokens), self._step.address(each.cache)
            lines = row_lines[rows : rows + count]
            lines[:, 0], lines[:, 1] = each.tokens, np.arange(each.place, each.place + count)
            lines[:, 2] = each.cache.positions
            lines[:, 4:6] = np.array([address], np.int64).view(np.int32)
            lines[:, 6], lines[:, 7] = lines[:, 1], _ROOT
            for first in range(0, count, TILE_ROWS):
                line = tile_lines[tiles]
                line[:4] = rows + first, min(TILE_ROWS, count - first), each.place + first, each.cache.positions
                line[4:6] = lines[0, 4:6]
                tiles += 1
            rows += count
            table[_WHICH + wanted : _WHICH + wanted + each.wanted] = range(rows - each.wanted, rows)
            wanted += each.wanted
        self._step.driver.write(about, table)
        return tiles

    def _places(self, rows: int, splits: int, *, logits: bool, decodes: bool) -> dict[str, int]:
        """Addresses of what a pass keeps in device memory."""
        c = self.config
        sizes = {"x": rows * c.hidden_size, "queries": rows * c.num_heads * c.head_dim}
        sizes |= self._sizes(rows, decodes=decodes)
        sizes["splits"] = rows * c.num_heads * splits * (c.head_dim + SPLIT_SIZE)
        if decodes:
            sizes["found"] = rows * self._step.grid * CHOICE_WORDS
        if logits:
            sizes["logits"] = ROW_BAND * self._head_columns
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

    def _prepare(self) -> None:
        """Compile the kernels and look up the weights, unless that was done."""
        if self._table:
            return
        flat = self._step.addresses([entry for line in self._entries for entry in line])
        for line in self._entries:
            self._table.append(flat[: len(line)])
            del flat[: len(line)]
        self._load(decodes=False)

    def _load(self, *, decodes: bool) -> None:
        """Compile the kernels on first use."""
        made = self._shapes(decodes)
        if made.keys() <= self._functions.keys():
            return
        driver, code = self._step.driver, self._codes.pop(decodes, None) or self._code(decodes)
        for name, (threads, shared_bytes) in made.items():
            self._functions[name] = driver.function(code, name, shared_bytes=shared_bytes), threads, shared_bytes

    def _code(self, decodes: bool) -> bytes:
        """Machine code of a text."""
        return self._compiler.code(self.text(decodes=decodes))

    def _shapes(self, decodes: bool) -> dict[str, tuple[int, int]]:
        """Threads and bytes of dynamic shared memory of the blocks of all kernels of a text."""
        return self._kernels(decodes=decodes) | self._common_kernels(decodes=decodes)

    def _common_kernels(self, *, decodes: bool) -> dict[str, tuple[int, int]]:
        """As `_kernels`, of what all models have."""
        if decodes:
            return {"decode_attend": (THREADS, 0), "decode_look": (THREADS, 0), "decode_choose": (32, 0)}
        size = self.config.head_dim
        attend = 4 * TILE_ROWS * ((SPAN + 4) + size + 2 * (SPAN // 16 + 1) + SPAN // 16)
        attend += padded(size // 4 * (SPAN + 1) * 8, 16) + (SPAN * size * 2 if size <= 64 else 16)
        made = dict.fromkeys(("prompt_embed", "prompt_norm", "prompt_mix", "prompt_gate"), (THREADS, 0))
        made |= {"prompt_turn": (256, 0), "prompt_attend": (256, attend)}
        return made
