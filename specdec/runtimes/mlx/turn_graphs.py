"""Turns that draft by themselves as graphs of ordinary kernels on CUDA: `TurnGraphs`.

A graph has the launches of one turn: drafting, the pass over the tree, choices, learning (`decode_tree.cuh`). Graphs
are begun ahead of the host, which looks after each turn whether another one follows. Multiplications of such a pass
decode quantised weights once for eight or sixteen rows; the one kernel of a step is slower from a few rows on, and has
no room for sixteen rows of most quantised models. Turns leave the same bits either way.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import numpy as np

from specdec.runtimes.mlx.cache import SPAN, GpuCache
from specdec.runtimes.mlx.graphs import Graphs
from specdec.runtimes.mlx.prompt_quant import QuantPrompts
from specdec.runtimes.mlx.prompt_work import Tree
from specdec.runtimes.mlx.recycle import BEGINS
from specdec.runtimes.mlx.state import AHEAD, MAX_ROWS, MOST_AHEAD, RECYCLE, STATE_SIZE
from specdec.runtimes.mlx.step import CHOICE_WORDS

_ROWS = (4, 8, 12, MAX_ROWS)  # of a graph
_MOST_GRAPHS = 16
_UNDER_WAY = 2  # graphs, while the host has not seen the first of them end
_PROGRESS = 3  # words behind the state: turns that have ended, rows that the last one kept, whether another follows


class TurnGraphs:
    """Turns of one model over one sequence.

    Args:
        mx: MLX.
        prompts: the model's wide passes.
        spare: a cache for rows that only fill a graph.

    Attributes:
        most_rows: most rows of a turn.
    """

    most_rows = MAX_ROWS

    def __init__(self, mx: Any, prompts: QuantPrompts, spare: GpuCache) -> None:
        self._mx, self._prompts, self._spare, self._driver = mx, prompts, spare, prompts.step.driver
        self._graphs = Graphs(self._driver, _MOST_GRAPHS)
        self._events: list[ctypes.c_void_p] = []
        self._tree: Tree | None = None
        self._kept: Any = None  # the array of the state
        self._told = self._shown = np.empty(0, np.int32)
        self._is_running = False  # a turn without rows may be under way

    def __del__(self) -> None:
        """A turn that was begun uses the model's memory, which is freed next."""
        with suppress(OSError):
            self.finish()
            self._graphs.forget()

    def finish(self) -> None:
        """Wait for a turn without rows, which uses the memory of other passes."""
        if self._is_running:
            self._driver.wait()
            self._is_running = False

    def run(self, state: np.ndarray, cache: GpuCache, reach: int, angles: Any) -> np.ndarray:
        """Run turns until the text ends, or as many as the state allows. Nothing else may run.

        Args:
            state: int32 (STATE_SIZE,), of a single row, with the address of the cache; see `Recycler.tell`.
            cache: the sequence's.
            reach: positions that turns may reach at least; they end where attention would take one more split.
            angles: float32 (positions, D / 2, 2).

        Returns:
            Choices float32 (turns, rows, CHOICE_WORDS): see `step_recycle.cuh`.
        """
        self.finish()  # it uses memory that may have to grow
        tree, driver = self._memory(), self._driver
        rows, turns = next(count for count in _ROWS if count >= state[RECYCLE]), 1 + int(state[AHEAD])
        work = self._prompts.turn_work(rows, reach, angles, tree.state)
        graph = self._graphs.of(work, lambda: self._prompts.recorded_turn(work, tree))
        self._told[:STATE_SIZE] = state
        self._told[RECYCLE + 5] = min(cache.positions, work.splits * SPAN)
        self._told[STATE_SIZE:] = 0, 0, 1
        driver.send(tree.state, self._told)
        if state[RECYCLE + 4] == BEGINS:
            driver.begin(self._prompts.forgetting(tree.state))
        shown = self._shown[: turns * (1 + rows) * CHOICE_WORDS].reshape(turns, 1 + rows, CHOICE_WORDS)
        begun = 0
        for turn in range(turns):
            while begun < min(turns, turn + _UNDER_WAY):
                driver.replay(graph)
                driver.mark(self._events[begun])
                begun += 1
            driver.reach(self._events[turn])
            if not shown[turn, 0, 0]:
                break
        self._is_running = begun > turn + 1
        return shown[: turn + 1, 1:].view(np.float32).copy()

    def _memory(self) -> Tree:
        """Memory that all turns share, allocated by the first."""
        if self._tree is None:
            step, driver = self._prompts.step, self._driver
            self._spare.reserve(1)
            self._kept = step.own((STATE_SIZE + _PROGRESS,), self._mx.int32)
            self._told = driver.pinned(4 * (STATE_SIZE + _PROGRESS)).view(np.int32)
            # The last kernel of a turn writes here, in the host's memory.
            self._shown = driver.pinned(4 * (1 + MOST_AHEAD) * (1 + MAX_ROWS) * CHOICE_WORDS).view(np.int32)
            self._events = [driver.event() for _ in range(1 + MOST_AHEAD)]
            (state,) = step.addresses([self._kept])
            spare = step.address(self._spare), self._spare.positions
            self._tree = Tree(state, *spare, self._shown.ctypes.data)
        return self._tree
