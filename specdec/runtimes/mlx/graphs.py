"""Captured launches of passes, by the shape of the pass: `Graphs`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.runtimes.mlx.device import CudaDriver, PlainLaunch
    from specdec.runtimes.mlx.prompt_work import Work


class Graphs:
    """Graphs of passes. When there are as many as may be, all are forgotten: none may be running then.

    Args:
        driver: of the GPU.
        most: graphs that are kept.
    """

    def __init__(self, driver: CudaDriver, most: int) -> None:
        self._driver, self._most = driver, most
        self._made: dict[tuple[int, ...], ctypes.c_void_p] = {}

    def of(self, work: Work, record: Callable[[], Sequence[PlainLaunch]]) -> ctypes.c_void_p:
        """The graph of a pass, captured from what `record` returns if there is none of this shape."""
        shape = (work.rows, work.splits, work.chains, work.angles, *work.places.values())
        if shape not in self._made:
            if len(self._made) >= self._most:
                self.forget()
            self._made[shape] = self._driver.graph(record())
        return self._made[shape]

    def forget(self) -> None:
        """Free all of them."""
        for graph in self._made.values():
            self._driver.forget(graph)
        self._made.clear()
