"""Turns of which each is a graph, kernel by kernel on the host; the layers between are made up."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import quant_steps
from cuda_steps import Memory
from decode_kernels import ROWS, TILE, TREE_KERNELS, Given, aligned, build
from specdec.kernels.reference.recycle import TOP, Recycled

from specdec.runtimes.base import Recycling
from specdec.runtimes.mlx.prompt_quant import QuantPrompts
from specdec.runtimes.mlx.recycle import Recycler
from specdec.runtimes.mlx.state import MAX_ROWS, STATE_SIZE, chain, show_choices, state_of
from specdec.runtimes.mlx.step import CHOICE_WORDS, TOP_WORDS

GRID = 5  # blocks: each looks at several pieces of the logits of 32000 tokens
POSITIONS, SPARE_POSITIONS = 512, 256


class Language:
    """A model whose logits, keys and values depend on a row's token and position alone.

    Args:
        vocab_size: tokens, of which texts have forty.
    """

    def __init__(self, vocab_size: int) -> None:
        rng = np.random.default_rng(vocab_size)
        self.vocab_size, self.letters = vocab_size, rng.permutation(vocab_size)[:40]
        self._after = np.stack([rng.permutation(self.letters) for _ in range(2)])

    def logits(self, token: int, position: int) -> np.ndarray:
        """Float32 (V,), whole quarters: many are equal, and in places the two largest. One token mostly follows
        another; at every fourth position what comes second elsewhere does."""
        made = np.random.default_rng((token, position)).integers(-32, 32, self.vocab_size).astype(np.float32) / 4
        first, second = self._after[:, token % 40][:: -1 if position % 4 == 3 else 1]
        made[second], made[first] = 20 if position % 8 == 5 else 19.5, 20
        return made

    def likeliest(self, token: int, position: int) -> list[int]:
        """The likeliest tokens; of equal ones the lower first."""
        found: list[int] = np.argsort(-self.logits(token, position), kind="stable")[:TOP].tolist()
        return found

    def keys(self, token: int, position: int, shape: tuple[int, ...]) -> np.ndarray:
        """Keys and values of all layers, float16."""
        return np.random.default_rng((position, token)).standard_normal(shape).astype(np.float16)

    def text(self, length: int) -> list[int]:
        """A text whose end has occurred before, twice and with different tokens after it."""
        made: list[int] = np.random.default_rng(length).choice(self.letters, length).tolist()
        made[4:7] = made[12:15] = made[-3:]
        return made

    def answer(self, text: Sequence[int], count: int) -> list[int]:
        """What follows a text, token by token."""
        made = list(text)
        for _ in range(count):
            made.append(self.likeliest(made[-1], len(made) - 1)[0])
        return made[len(text) :]


def quantised(monkeypatch: Any) -> QuantPrompts:
    """Wide passes of a quantised model, with layers enough that several blocks move keys and values."""
    monkeypatch.setattr(quant_steps, "GRID", GRID)
    step, _ = quant_steps.step_of("135M", "q5_0", "q6_k", "q8_0", "q4_k", layers=8)
    return QuantPrompts(step.mx, step, [[""] * 20] * 8 + [[""] * 5], SimpleNamespace(code=str.encode))  # type: ignore[arg-type]


class TreeTurns:
    """Turns of a model over one sequence.

    Args:
        prompts: of the model.
        folder: for the library.

    Attributes:
        state: int32 (STATE_SIZE + 3,).
        about: the table of rows, int32 (MAX_ROWS, 8).
        cache: keys and values of the sequence.
        spare: those of rows that only fill a graph.
    """

    def __init__(self, prompts: QuantPrompts, folder: Path) -> None:
        self.prompts, c = prompts, prompts.config
        self.compiled, self.language = build(folder, prompts.text(decodes=True)), Language(c.vocab_size)
        self.cache, self.spare = (
            aligned(np.zeros((c.num_layers, 2, c.num_kv_heads, positions, c.head_dim), np.float16))
            for positions in (POSITIONS, SPARE_POSITIONS)
        )
        self.found = aligned(np.zeros((MAX_ROWS, GRID, CHOICE_WORDS), np.float32))
        self.tops = aligned(np.zeros((MAX_ROWS, GRID, TOP_WORDS), np.uint32))
        tiles, _, _, blocks = prompts._step.segments[7]
        self.sums = aligned(np.zeros((tiles + blocks, ROWS, TILE), np.float32))
        self.restart()

    def restart(self) -> TreeTurns:
        """Forget all texts; some tokens have known successors."""
        self.device = Memory()
        self.state = self.device.own(STATE_SIZE + 3)
        self.about = self.device.own(MAX_ROWS * 8).reshape(MAX_ROWS, 8)
        self.recycler = Recycler(
            self.device,  # type: ignore[arg-type]
            self.device.own,
            lambda array: int(array.ctypes.data),
            vocab_size=self.language.vocab_size,
            most_tokens=256,
        )
        letters = self.language.letters[::2]
        known = [self.language.likeliest(token, 0) for token in letters.tolist()]
        self.recycler.know(letters.astype(np.int32), np.array(known, np.int32))
        return self

    @property
    def memory(self) -> np.ndarray:
        """Of the recycler: int32."""
        found: np.ndarray = self.recycler._memory
        return found

    @property
    def tables(self) -> np.ndarray:
        """What turns draft with, and what a text begins with: (2, V, TOP)."""
        return self.memory[-2 * self.language.vocab_size * TOP :].reshape(2, -1, TOP)

    def rule(self, table: int = 0) -> Recycled:
        """The drafts of turns by what one of `tables` says now."""
        lines = enumerate(self.tables[table].tolist())
        return Recycled({token: [one for one in line if one >= 0] for token, line in lines})

    def state_for(self, wanted: Recycling, *, ahead: int, ends: Sequence[int] = ()) -> np.ndarray:
        """The state for turns over a text, int32 (STATE_SIZE,)."""
        text: Any = wanted.text
        state = state_of([chain(text[-1:], len(text) - 1, wanted=1)], [POSITIONS], [self.cache.ctypes.data])
        show_choices(state, ahead=ahead, ends=ends)
        cache: Any = SimpleNamespace(positions=POSITIONS)
        self.recycler.tell(state, cache, wanted)
        return state

    def fill(self, text: Sequence[int]) -> None:
        """The history of a text, and after it what nothing may read."""
        self.cache.view(np.uint16)[:] = 0xFFFF
        for position, token in enumerate(text[:-1]):
            self.cache[..., position, :] = self.keys(token, position)

    def keys(self, token: int, position: int) -> np.ndarray:
        """Keys and values of a row, (layers, 2, KV heads, D)."""
        return self.language.keys(token, position, self.cache[..., 0, :].shape)

    def launch(self, name: str, values: Sequence[int], grid: Sequence[int], *, backwards: bool = False) -> None:
        """Run a kernel, with the arguments that its launch has."""
        given = (ctypes.c_longlong * len(values))(*values)
        self.compiled.run_tree(TREE_KERNELS.index(name), given, *grid[:2], int(backwards))

    def begin(self, rows: int) -> None:
        """`tree_begin`."""
        spare = (self.spare.ctypes.data, SPARE_POSITIONS)
        self.launch("tree_begin", (self.state.ctypes.data, self.about.ctypes.data, rows, *spare), (1, 1))

    def layers(self, about: np.ndarray, sums: np.ndarray) -> None:
        """Keys and values of the rows in a table go into their caches, and their logits into `sums`."""
        caches = {array.ctypes.data: array for array in (self.cache, self.spare)}
        for number, (token, place, positions, _, *_, slot, _) in enumerate(about.tolist()):
            cache = caches[int(about[number, 4:6].copy().view(np.int64)[0])]
            assert cache.shape[3] == positions
            cache[..., slot, :] = self.keys(token, place)
            self._put(number, self.language.logits(token, place), sums)

    def _put(self, row: int, logits: np.ndarray, sums: np.ndarray) -> None:
        # In parts, as the blocks of a tile leave them.
        tiles, steps, begin, blocks = self.prompts._step.segments[7]
        given = ctypes.byref(Given(0, 8, ROWS, tiles, steps, begin, blocks))
        rng, all_tiles = np.random.default_rng(row), np.zeros((tiles, TILE), np.float32)
        all_tiles.reshape(-1)[: len(logits)] = logits
        for tile, wanted in enumerate(all_tiles):
            first, last = (self.compiled.block_of(given, tile * steps + unit) for unit in (0, steps - 1))
            parts = rng.integers(-8, 8, (last - first + 1, TILE)) / 4  # whole quarters: sums are exact
            parts[-1] = wanted - parts[:-1].sum(0)
            at = self.compiled.slot_of(given, first, tile)
            sums[at : at + len(parts), row] = parts

    def look(self, rows: int, *, backwards: bool = False) -> None:
        """`tree_look`."""
        places = (self.sums.ctypes.data, ROWS, self.found.ctypes.data, self.tops.ctypes.data)
        self.launch("tree_look", (self.state.ctypes.data, *places), (GRID, rows), backwards=backwards)

    def end(self, rows: int, shown: np.ndarray, *, backwards: bool = False) -> None:
        """`tree_end`; `shown` is for all turns, float32 (turns, 1 + rows, CHOICE_WORDS)."""
        places = (self.state.ctypes.data, self.found.ctypes.data, self.tops.ctypes.data)
        self.launch("tree_end", (*places, rows, shown.ctypes.data), (GRID, 1), backwards=backwards)
