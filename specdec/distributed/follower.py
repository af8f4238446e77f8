"""The other ranks: `follow` does what rank 0 says until it ends."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np

from specdec.distributed.environment import is_follower
from specdec.distributed.group import Group, join
from specdec.distributed.link import CLOSED, Link
from specdec.distributed.opening import Order, open_part
from specdec.errors import MemoryShortError
from specdec.interrupts import unless_signalled
from specdec.model.effort import Efforts
from specdec.runtimes.base import Cache, Rows, Runtime, Window


def follow() -> int:
    """Run this rank's part of every pass until rank 0 ends.

    Returns:
        The exit code of the process.

    Raises:
        DistributedError: the other ranks cannot be reached.
    """
    # An interrupt at the terminal reaches every process; what comes of it is rank 0's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    group = join()
    (link,) = group.links
    follower = _Follower(group, link)
    while True:
        message = link.receive()
        if message is CLOSED:
            group.watch.wait_for_end()
        if message == ["end"]:
            group.watch.stop()
            return 0
        for note in message:
            follower.do(note)


def follow_if_told() -> None:
    """In a process that a launcher started as another rank than the first: `follow`, then end the process.

    Raises:
        SystemExit: rank 0 has ended.
    """
    if is_follower():
        raise SystemExit(follow())


class _Follower:
    """Models and caches of one rank, by the numbers that rank 0 gave them."""

    def __init__(self, group: Group, link: Link) -> None:
        self._group, self._link = group, link
        self._runtimes: dict[int, Runtime] = {}
        self._caches: dict[int, Cache] = {}
        self._efforts: dict[tuple[int, int], Efforts] = {}

    def do(self, note: list[Any]) -> None:
        """One thing that rank 0 said."""
        try:
            getattr(self, f"_{note[0]}")(*note[1:])
        except Exception as error:
            self._group.watch.fail(" ".join(str(error).split()) or type(error).__name__)

    def _open(self, number: int, order: dict[str, Any]) -> None:
        try:
            runtime, card = open_part(Order(**order), self._group)
        except unless_signalled(Exception) as error:
            self._link.send(["answer", None, " ".join(str(error).split()) or type(error).__name__])
            return
        self._runtimes[number] = runtime
        self._link.send(["answer", card, ""])

    def _time_gathers(self, size: int, repeat: int) -> None:
        self._group.gather_s(size, repeat)

    def _prepare(self, number: int, view: str) -> None:
        problem = ""
        try:
            self._runtimes[number].prepare(view)
        except MemoryShortError as error:
            problem = str(error)
        self._link.send(["answer", problem])

    def _new(self, runtime: int, number: int, capacity: int) -> None:
        self._caches[number] = self._runtimes[runtime].new_cache(capacity)

    def _trim(self, number: int, length: int) -> None:
        self._caches[number].trim(length)

    def _keep(self, number: int, base: int, rows: list[int]) -> None:
        self._caches[number].keep(base, rows)

    def _fork(self, number: int, other: int, length: int, capacity: int) -> None:
        self._caches[other] = self._caches[number].fork(length, capacity)

    def _drop(self, number: int) -> None:
        self._caches.pop(number, None)

    def _close(self, number: int) -> None:
        self._runtimes.pop(number, None)

    def _forward(self, number: int, view: str, states: bool, shares: list[list[Any]]) -> None:
        batch = [
            Rows(
                self._caches[cache],
                tokens,
                self._efforts[number, efforts],
                parents,
                layers,
                logits,
                window=None if window is None else Window(*window),
            )
            for cache, tokens, efforts, parents, layers, logits, window in shares
        ]
        self._runtimes[number].forward(batch, view=view, states=states)

    def _learn(self, runtime: int, number: int, values: list[float]) -> None:
        self._efforts[runtime, number] = Efforts(np.array(values))
