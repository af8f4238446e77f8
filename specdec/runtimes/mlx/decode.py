"""Passes over the next rows of many answers on CUDA, more rows than a one-kernel step takes: `Decoder`.

They use the kernels of wide passes over prompts (`prompt`), with attention of single rows, each over its own
history, and the choice of tokens (`kernels/cuda/prompt/prompt_decode.cuh`). A pass leaves the bits of a step. It is a
graph of launches, which moves every row on to the token that it has chosen. So passes follow each other without the
host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.prompt import ROW_BAND, Part, Prompts, Work
from specdec.runtimes.mlx.state import MOST_AHEAD
from specdec.runtimes.mlx.step import CHOICE_WORDS

MOST_ROWS = ROW_BAND  # rows of a pass
_MOST_GRAPHS = 32
_ROWS = (12, 16, 24, 32, 48, 64)  # of a graph: answers come and go, and a graph takes milliseconds to make


class Decoder:
    """Passes that choose tokens.

    Args:
        mx: MLX.
        prompts: the model's wide passes.
        spare: a cache for rows that only fill a graph.
    """

    def __init__(self, mx: Any, prompts: Prompts, spare: GpuCache) -> None:
        self._mx, self._prompts, self._spare, self._driver = mx, prompts, spare, prompts.step.driver
        self._graphs: dict[tuple[int, ...], ctypes.c_void_p] = {}
        self._kept: list[Any] = []
        self._choices = 0  # address of the device's choices
        self._host: np.ndarray | None = None

    def run(self, parts: Sequence[Part], angles: Any, ahead: int) -> np.ndarray:
        """Put keys and values of all rows into their caches and choose the token after each. Nothing else may run.

        Args:
            parts: at most `MOST_ROWS` rows in all, all wanted.
            angles: float32 (positions, D / 2, 2).
            ahead: further passes, each over the tokens that the one before has chosen; above 0 every part has one row.

        Returns:
            Choices float32 (1 + ahead, rows, CHOICE_WORDS): see `step_choose.cuh`.
        """
        host, driver = self._memory(), self._driver
        count = sum(len(part.tokens) for part in parts)
        fill = next(rows for rows in _ROWS if rows >= count) - count
        work = self._prompts.work([*parts, *[Part(self._spare, [0], 0, 1)] * fill], angles, decodes=True, ahead=ahead)
        graph = self._graph(work)
        for _ in range(1 + ahead):
            driver.replay(graph)
        found = host[: (1 + ahead) * work.rows]
        driver.wait()
        driver.read(self._choices, found)
        return found.reshape(1 + ahead, work.rows, CHOICE_WORDS)[:, :count].copy()

    def _graph(self, work: Work) -> ctypes.c_void_p:
        """The launches of a pass of this shape."""
        key = (work.rows, work.splits, work.angles, *work.places.values())
        if key not in self._graphs:
            if len(self._graphs) >= _MOST_GRAPHS:
                for graph in self._graphs.values():
                    self._driver.forget(graph)
                self._graphs.clear()
            self._graphs[key] = self._driver.graph(self._prompts.recorded(work, self._choices))
        return self._graphs[key]

    def _memory(self) -> np.ndarray:
        """Host memory for all choices; the first call allocates memory on the device as well."""
        if self._host is None:
            self._spare.reserve(1 + MOST_AHEAD)
            lines = (1 + MOST_AHEAD) * MOST_ROWS
            step = self._prompts.step
            self._kept = [step.own((lines, CHOICE_WORDS), self._mx.float32)]
            (self._choices,) = step.addresses(self._kept)
            self._host = self._driver.pinned(4 * lines * CHOICE_WORDS).view(np.float32).reshape(lines, CHOICE_WORDS)
        return self._host
