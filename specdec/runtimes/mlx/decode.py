"""Passes over the next rows of many answers on CUDA, more rows than a one-kernel step takes: `Decoder`.

They use the kernels of wide passes over prompts (`prompt`), with attention of single rows, each over its own
history, and the choice of tokens (`kernels/cuda/prompt/prompt_decode.cuh`). A pass leaves the bits of a step. It is a
graph of launches, which moves every row on to the token that it has chosen. So passes follow each other without the
host. The passes of the next request can begin while the host hands out the tokens of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.graphs import Graphs
from specdec.runtimes.mlx.prompt import Prompts
from specdec.runtimes.mlx.prompt_work import ROW_BAND, Part
from specdec.runtimes.mlx.state import MOST_AHEAD
from specdec.runtimes.mlx.step import CHOICE_WORDS

MOST_ROWS = ROW_BAND  # rows of a pass
_MOST_GRAPHS = 32
_ROWS = (2, 4, 8, 12, 16, 24, 32, 48, 64)  # of a graph: answers come and go, and a graph takes milliseconds to make


@dataclass(slots=True)
class _Begun:
    """Passes that have begun.

    Attributes:
        parts: of the passes.
        rows: of all parts.
        turns: passes.
        padded: rows with those that only fill the graph.
        arrays: keys and values, which may not be freed before the passes have ended.
        found: choices float32 (turns, rows, CHOICE_WORDS), once the passes have ended.
    """

    parts: Sequence[Part]
    rows: int
    turns: int
    padded: int
    arrays: list[list[Any]]
    found: np.ndarray | None = None

    def of(self, parts: Sequence[Part]) -> np.ndarray | None:
        """Choices of some of the parts; None if others are asked for, or other tokens at other places."""
        numbers = {id(part.cache): number for number, part in enumerate(self.parts)}
        which = [numbers.get(id(part.cache), -1) for part in parts]
        for part, number in zip(parts, which, strict=True):
            own = self.parts[number]
            if number < 0 or own.place != part.place or list(own.tokens) != list(part.tokens):
                return None
        return None if self.found is None else self.found[:, which]


class Decoder:
    """Passes that choose tokens.

    Args:
        mx: MLX.
        prompts: the model's wide passes.
        spare: a cache for rows that only fill a graph.
    """

    def __init__(self, mx: Any, prompts: Prompts, spare: GpuCache) -> None:
        self._mx, self._prompts, self._spare, self._driver = mx, prompts, spare, prompts.step.driver
        self._graphs = Graphs(self._driver, _MOST_GRAPHS)
        self._kept: list[Any] = []
        self._choices = 0  # address of the device's choices
        self._host: np.ndarray | None = None
        self._begun: _Begun | None = None  # for the next `run`

    def __del__(self) -> None:
        """Passes that were begun use the model's memory, which is freed next."""
        with suppress(OSError):
            self.finish()
            self._graphs.forget()

    def run(self, parts: Sequence[Part], angles: Any, ahead: int, further: int = 0) -> np.ndarray:
        """Put keys and values of all rows into their caches and choose the token after each. Nothing else may run.

        Args:
            parts: at most `MOST_ROWS` rows in all, all wanted.
            angles: float32 (positions, D / 2, 2).
            ahead: further passes, each over the tokens that the one before has chosen; above 0 every part has one row.
            further: passes after those to begin and leave to the next `run`, which gets their choices if it asks for
                nothing else, after `finish`; there is memory for their keys and values, too.

        Returns:
            Choices float32 (turns, rows, CHOICE_WORDS): see `step_choose.cuh`. There are 1 + ahead turns, or as many as
            were begun before.
        """
        begun, self._begun = self._begun, None
        found = None if begun is None else begun.of(parts)
        if found is None:
            found = self._read(self._begin(parts, angles, 1 + ahead))
        found = found[: 1 + ahead]
        if further:
            tokens, turns = found[-1, :, 4].copy().view(np.int32).tolist(), len(found)
            then = [Part(part.cache, [token], part.place + turns, 1) for part, token in zip(parts, tokens, strict=True)]
            self._begun = self._begin(then, angles, further)
        return found

    def finish(self) -> None:
        """Wait for passes that were begun for the next `run`: caches may not change before."""
        if self._begun is not None and self._begun.found is None:
            self._begun.found = self._read(self._begun)

    def forget(self) -> None:
        """Forget passes that were begun for the next `run`: caches may hold other tokens by then."""
        self._begun = None

    def _begin(self, parts: Sequence[Part], angles: Any, turns: int) -> _Begun:
        self._memory()
        count = sum(len(part.tokens) for part in parts)
        fill = [Part(self._spare, [0], 0, 1)] * (next(rows for rows in _ROWS if rows >= count) - count)
        work = self._prompts.work([*parts, *fill], angles, decodes=True, ahead=turns - 1)
        graph = self._graphs.of(work, lambda: self._prompts.recorded(work, self._choices))
        for _ in range(turns):
            self._driver.replay(graph)
        return _Begun(parts, count, turns, work.rows, [part.cache.arrays for part in parts])

    def _read(self, begun: _Begun) -> np.ndarray:
        """Choices of passes, once they have ended."""
        found = self._memory()[: begun.turns * begun.padded]
        self._driver.wait()
        self._driver.read(self._choices, found)
        return found.reshape(begun.turns, begun.padded, CHOICE_WORDS)[:, : begun.rows].copy()

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
