"""A request of a batch: the `Ticket` that the batch's thread works on, and the `Reading` that its caller holds."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable

from specdec.engine.answer import Answer
from specdec.engine.generation import Generation
from specdec.engine.result import Piece
from specdec.engine.texts import as_tokens
from specdec.errors import SpecdecError


class Ticket:
    """An answer whose passes a batch runs, and the queue of what it has said.

    Args:
        answer: not started yet.
        owner: whose requests may share what it reads.
        deadline_s: seconds from now after which it ends; None for never.

    Attributes:
        sequence: the answer's, until it has ended: its keys and values are not the caller's to hold.
        prompt: its tokens but the last one, int32.
        key: equal for requests that may share keys and values.
        ends_at_s: of `time.monotonic`, or None.
        worst_bytes: most bytes that its keys and values may take; set before it joins.
        number: of the sequence; identifies its events.
        is_started: its prompt is being read, or has been.
    """

    def __init__(self, answer: Answer, *, owner: str = "", deadline_s: float | None = None) -> None:
        assert answer.sequence is not None
        self.answer, self.sequence = answer, answer.sequence
        self.number = id(self.sequence)
        self.prompt = as_tokens(self.sequence.tokens[:-1])
        self.key = owner, self.sequence.efforts
        self.ends_at_s = None if deadline_s is None else time.monotonic() + deadline_s
        self.worst_bytes, self.is_started = 0, False
        self.arrived: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        self.waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None  # of the loop that reads it

    def drop(self) -> None:
        """Let go of the sequence and all that it holds."""
        del self.sequence, self.prompt

    def put(self, item: Piece | BaseException | None) -> None:
        """Hand over a piece, an error, or None at the end; `wake` tells a reader that awaits it."""
        self.arrived.put(item)


def wake(tickets: Iterable[Ticket]) -> None:
    """Tell the readers of several tickets that something has arrived, with one call for each event loop."""
    waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for ticket in tickets:
        if (waiter := ticket.waiter) is not None:
            waiting.setdefault(waiter[0], []).append(waiter[1])
    for loop, events in waiting.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is no reader left
            loop.call_soon_threadsafe(_set_all, events)


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()


class Reading(Generation):
    """What the caller holds of a ticket. Dropping it ends the answer, as closing it does.

    Args:
        ticket: of the request.
        cancel: tells the batch that the reader is gone.
        check_reader: raises where the thread that calls it cannot read.
    """

    def __init__(self, ticket: Ticket, cancel: Callable[[Ticket], None], check_reader: Callable[[], None]) -> None:
        super().__init__(ticket.answer)
        self._check_reader = check_reader
        self._ticket, self._reading, self._is_over = ticket, threading.Lock(), False
        self._end = weakref.finalize(self, cancel, ticket)
        self._end.atexit = False

    def __next__(self) -> Piece:
        self._begin()
        try:
            if self._is_over:
                raise StopIteration
            piece = self._checked(self._ticket.arrived.get())
        finally:
            self._reading.release()
        if piece is None:
            raise StopIteration
        return piece

    async def __anext__(self) -> Piece:
        self._begin()
        try:
            piece = None if self._is_over else self._checked(await self._arrival())
        finally:
            self._reading.release()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """End the answer at the next pass boundary; more than once does no harm."""
        self._end()

    def _begin(self) -> None:
        self._check_reader()
        if not self._reading.acquire(blocking=False):
            raise SpecdecError("another reader is reading this answer: one at a time may iterate over it")

    async def _arrival(self) -> Piece | BaseException | None:
        ticket, loop = self._ticket, asyncio.get_running_loop()
        waiter = ticket.waiter
        if waiter is None or waiter[0] is not loop:
            waiter = ticket.waiter = loop, asyncio.Event()
        arrived = waiter[1]
        while True:
            arrived.clear()  # before the look: what comes after it sets the event again
            try:
                return ticket.arrived.get_nowait()
            except queue.Empty:
                await arrived.wait()

    def _checked(self, item: Piece | BaseException | None) -> Piece | None:
        """A piece; None at the end.

        Raises:
            BaseException: what ended the answer.
        """
        if isinstance(item, Piece):
            return item
        self._is_over = True
        if item is not None:
            raise item
        return None
