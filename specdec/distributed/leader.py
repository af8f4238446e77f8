"""Rank 0: runs its own part of every pass, and tells the other ranks to run theirs.

What caches do is noted and goes out with the next pass, so that a pass costs one message. Everything that could be
refused is refused before that message: once the ranks are in a pass, each of them has to come to its end.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

from specdec.distributed.group import Group
from specdec.distributed.link import CLOSED
from specdec.distributed.local import OverLocal
from specdec.distributed.stages import StagedRuntime
from specdec.distributed.watch import named
from specdec.errors import InvalidArgumentError, MemoryShortError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts
from specdec.progress import Count
from specdec.runtimes.base import EXACT, Cache, Pass, Rows, Runtime, RuntimeInfo, check_view
from specdec.runtimes.checks import check_batch, checked_tokens
from specdec.turns import Turns

_MOST_EFFORTS = 4096  # schedules that ranks remember


class Leader:
    """What rank 0 tells the others; one for a group.

    Args:
        group: the ranks.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.turn = Turns()  # one pass, or one question, of all models at a time
        self._notes: deque[list[Any]] = deque()
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """A new number for a model or a cache."""
        return next(self._numbers)

    def note(self, *note: Any) -> None:
        """Something to tell with the next message; from any thread."""
        self._notes.append(list(note))

    def tell(self, *message: Any) -> None:
        """Send what was noted, and then this, to all ranks."""
        notes: list[list[Any]] = []
        while self._notes:
            notes.append(self._notes.popleft())
        notes.append(list(message))
        for link in self.group.links:
            link.send(notes)

    def answers(self) -> list[Any]:
        """What every other rank says to the question that was asked last, in their order.

        A rank that cannot go on ends all.
        """
        found = []
        for link in self.group.links:
            answer = link.receive()
            if answer is CLOSED:
                self.group.watch.wait_for_end()
            found.append(answer[1:])
        return found

    def gather_s(self, size: int, repeat: int) -> float:
        """Median seconds of a gather of `size` values of each rank."""
        with self.turn, uninterrupted():
            self.tell("time_gathers", size, repeat)
            return self.group.gather_s(size, repeat)


class LeaderCache:
    """Rank 0's part of a cache whose heads are divided among ranks."""

    __slots__ = ("__weakref__", "_leader", "local", "number", "owner")

    def __init__(self, leader: Leader, owner: LeaderRuntime, local: Cache, number: int) -> None:
        self._leader, self.owner, self.local, self.number = leader, owner, local, number

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.local.length

    @property
    def capacity(self) -> int:
        """Most tokens that may be held."""
        return self.local.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's part."""
        return self.local.nbytes

    def blocks(self) -> Mapping[int, int]:
        """Bytes of each piece of this rank's part; see `Cache.blocks`."""
        return self.local.blocks()

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens; see `Cache.trim`."""
        if length != self.local.length:
            self.local.trim(length)
            self._leader.note("trim", self.number, int(length))

    def keep(self, base: int, rows: Sequence[int]) -> None:
        """Keep one path of a tree; see `Cache.keep`."""
        self.local.keep(base, rows)
        self._leader.note("keep", self.number, int(base), [int(row) for row in rows])

    def fork(self, length: int, capacity: int) -> LeaderCache:
        """A cache of another sequence that begins like this one; see `Cache.fork`."""
        number = self._leader.number()
        other = LeaderCache(self._leader, self.owner, self.local.fork(length, capacity), number)
        self._leader.note("fork", self.number, number, int(length), int(capacity))
        return other

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never made whole
            self._leader.note("drop", self.number)


class LeaderRuntime(OverLocal):
    """A model that all ranks run together: the `Runtime` of rank 0.

    Args:
        leader: tells the others.
        local: this rank's part.
        number: of the model.
    """

    def __init__(self, leader: Leader, local: Runtime, number: int) -> None:
        super().__init__(local)
        self._leader, self._number = leader, number
        self.config: ModelConfig = local.config
        self.info: RuntimeInfo = local.info
        self._prepared: set[str] = {EXACT}
        self._efforts: dict[Efforts, int] = {}

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        """Make `view` ready on all ranks; see `Runtime.prepare`.

        Raises:
            UnknownNameError: there is no such view.
            MemoryShortError: a rank has no memory for it.
        """
        check_view(view, self.views())
        if view in self._prepared:
            return
        with self._leader.turn, uninterrupted():
            self._leader.tell("prepare", self._number, view)
            short: MemoryShortError | None = None
            try:
                self._local.prepare(view, progress=progress)
            except MemoryShortError as error:
                short = error
            answers = self._leader.answers()
        if short is not None:
            raise short
        for link, (problem,) in zip(self._leader.group.links, answers, strict=True):
            if problem:
                raise MemoryShortError(f"{named(link)}: {problem}")
        self._prepared.add(view)

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache on all ranks; see `Runtime.new_cache`."""
        local, number = self._local.new_cache(capacity), self._leader.number()
        self._leader.note("new", self._number, number, int(capacity))
        return LeaderCache(self._leader, self, local, number)

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """One pass on all ranks; see `Runtime.forward`. A signal waits for its end, then all caches are as before."""
        local = self._checked(batch, view)
        if isinstance(self._local, StagedRuntime):
            self._local.check(batch, states)
        self.prepare(view)
        if not all(rows.efforts.is_full for rows in batch):
            self._prepare_efforts()
        with self._leader.turn:
            held = [rows.cache.length for rows in batch]
            try:
                with uninterrupted():
                    return self._run(batch, local, view, states)
            except BaseException:
                for rows, length in zip(batch, held, strict=True):
                    rows.cache.trim(length)
                raise

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never made whole
            self._leader.note("close", self._number)

    def _run(self, batch: Sequence[Rows], local: list[Rows], view: str, states: bool) -> list[Pass]:
        shares = [self._described(rows) for rows in batch]
        self._leader.tell("forward", self._number, view, states, shares)
        try:
            return self._local.forward(local, view=view, states=states)
        except Exception as error:
            # The others wait for this rank's rows, which will not come.
            self._leader.group.watch.fail(f"rank 0 failed in a pass: {error}")

    def _checked(self, batch: Sequence[Rows], view: str) -> list[Rows]:
        """The batch with this rank's caches, as the local runtime will accept it.

        Raises:
            InvalidArgumentError: it would not.
            UnknownNameError: unknown view.
        """
        check_batch(batch, self.config, LeaderCache, narrows=self.info.narrows)
        check_view(view, self.views())
        local = []
        for rows in batch:
            cache = rows.cache
            assert isinstance(cache, LeaderCache)
            if cache.owner is not self:
                raise InvalidArgumentError("a cache must come from new_cache of this runtime")
            if rows.head is not None:
                raise InvalidArgumentError("a draft head must come from draft_head of this runtime")
            checked_tokens(rows.tokens, cache, self.config.vocab)
            if len(rows.efforts.values) != len(self.config.matrices()):
                raise InvalidArgumentError("there must be one effort a matrix")
            local.append(replace(rows, cache=cache.local))
        return local

    def _described(self, rows: Rows) -> list[Any]:
        """A sequence's rows as a message has them."""
        cache = rows.cache
        assert isinstance(cache, LeaderCache)
        number = self._efforts.get(rows.efforts)
        if number is None:
            if len(self._efforts) >= _MOST_EFFORTS:
                self._efforts.clear()
            number = self._efforts[rows.efforts] = len(self._efforts)
            self._leader.note("learn", self._number, number, rows.efforts.values.tolist())
        parents = None if rows.parents is None else [int(parent) for parent in rows.parents]
        tokens = [int(token) for token in rows.tokens]
        window = None if rows.window is None else [rows.window.recent, rows.window.sinks]
        return [cache.number, tokens, number, parents, rows.layers, rows.logits, window]

    def _prepare_efforts(self) -> None:
        """What an effort below 1 needs of exact weights is packed on all ranks before a pass, not in it."""
        if "bucket" in self.views():
            self.prepare("bucket")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals whose handlers raise exceptions in this thread wait until the end, where they are handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def later(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    numbers = [one for name in ("SIGINT", "SIGTERM", "SIGHUP") if (one := getattr(signal, name, None)) is not None]
    former = {number: signal.getsignal(number) for number in numbers}
    former = {number: handler for number, handler in former.items() if callable(handler)}
    for number in former:
        signal.signal(number, later)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)
