"""Many answers of one model at once: `Batch` takes requests at any time from any thread, and `generate_all` a list."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from specdec.engine.answer import Answer
from specdec.engine.generation import Generation
from specdec.engine.result import Piece, Result
from specdec.engine.scheduler import Event, Scheduler
from specdec.errors import SpecdecError
from specdec.progress import Progress
from specdec.runtimes.base import MAX_SEQUENCES

if TYPE_CHECKING:
    from typing import Unpack

    from specdec.engine.options import OptionArguments
    from specdec.engine.prompt import Prompt
    from specdec.model.loaded import Model


def apply(event: Event, answer: Answer) -> Piece | None:
    """Take what a step did for an answer's sequence; the piece, if the step ended a round.

    Raises:
        Exception: the event's error, or what the answer's text or trace runs into.
    """
    if event.error is not None:
        raise event.error
    if event.done is None:
        answer.read_prompt(event.bytes_read, event.seconds)
        return None
    return answer.take(event.done)


def generate_all(model: Model, answers: list[Answer]) -> list[Result]:
    """Run answers to their ends in this thread. When one fails or the caller interrupts, all are closed.

    Raises:
        Exception: of the first answer that fails.
    """
    scheduler = Scheduler(model.runtime)
    open_answers: dict[int, Answer] = {}
    try:
        for answer in answers:
            assert answer.sequence is not None
            scheduler.add(answer.sequence)
            open_answers[id(answer.sequence)] = answer
        while open_answers:
            with model.lock:
                for event in scheduler.step():
                    answer = open_answers[id(event.sequence)]
                    apply(event, answer)
                    if answer.stopped_by is not None:
                        scheduler.remove(event.sequence)
                        del open_answers[id(event.sequence)]
                        answer.close()
        return [answer.result() for answer in answers]
    finally:
        for answer in answers:
            answer.close()


class _Ticket:
    """An answer whose passes a batch runs, and the queue of what it has said; the batch's own."""

    def __init__(self, answer: Answer) -> None:
        assert answer.sequence is not None
        self.answer, self.sequence = answer, answer.sequence
        self.arrived: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        self.waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.lock = threading.Lock()  # of `waiter`

    def put(self, item: Piece | BaseException | None) -> None:
        """Hand over a piece, an error, or None at the end."""
        self.arrived.put(item)
        with self.lock:
            waiter = self.waiter
        if waiter is not None:
            loop, arrived = waiter
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed: nobody waits any more
                loop.call_soon_threadsafe(arrived.set)


class _Reading(Generation):
    """What the caller holds of a ticket. Dropping it ends the answer, as closing it does."""

    def __init__(self, ticket: _Ticket, cancel: Callable[[_Ticket], None]) -> None:
        super().__init__(ticket.answer)
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
        if not self._reading.acquire(blocking=False):
            raise SpecdecError("another reader is reading this answer: one at a time may iterate over it")

    async def _arrival(self) -> Piece | BaseException | None:
        ticket, arrived = self._ticket, asyncio.Event()
        with ticket.lock:
            ticket.waiter = asyncio.get_running_loop(), arrived
        try:
            while True:
                try:
                    return ticket.arrived.get_nowait()
                except queue.Empty:
                    await arrived.wait()
                    arrived.clear()
        finally:
            with ticket.lock:
                ticket.waiter = None

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


class Batch:
    """Answers many requests of one model together: the weights are read once a pass for all of them.

    `submit` may be called from any thread at any time; what it returns is read in any thread, with `for` or `async
    for`, while others are read elsewhere. Each answer has the tokens that it would have alone. A thread of the batch's
    own runs the passes; it ends with `close`, or with the `with` block.

    Args:
        model: from `specdec.load`. Other generations of it may run meanwhile; rounds take turns.
        max_sequences: most answers that grow together; others wait for their turn, first come, first served.

    Raises:
        InvalidArgumentError: `max_sequences` is out of range.
    """

    def __init__(self, model: Model, *, max_sequences: int = MAX_SEQUENCES) -> None:
        self._model = model
        self._scheduler = Scheduler(model.runtime, max_sequences=max_sequences)
        self._tickets: dict[int, _Ticket] = {}  # by id of the sequence; the thread's own
        self._changed = threading.Condition()  # of the fields below
        self._new: list[_Ticket] = []
        self._cancelled: list[_Ticket] = []
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def submit(
        self, prompt: Prompt, *, progress: Progress | None = None, **options: Unpack[OptionArguments]
    ) -> Generation:
        """Begin an answer; arguments, errors and warnings are those of `specdec.stream`. The batch's thread calls
        `progress` as the prompt is read.

        Raises:
            SpecdecError: the batch is closed.
        """
        from specdec.engine.begin import begin

        with self._changed:
            self._check_open()
        ticket = _Ticket(begin(self._model, prompt, options, caller="submit", progress=progress))
        with self._changed:
            try:
                self._check_open()
            except SpecdecError:
                ticket.answer.close()
                raise
            self._new.append(ticket)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="specdec batch", daemon=True)
                self._thread.start()
                # A thread in the middle of a pass must not outlive the interpreter.
                atexit.register(self.close)
            self._changed.notify()
        return _Reading(ticket, self._cancel)

    def close(self) -> None:
        """End all answers at the next pass boundary, and wait for the thread; more than once does no harm."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            atexit.unregister(self.close)

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Answers that grow or wait."""
        return len(self._tickets) + len(self._new)

    def _check_open(self) -> None:
        if self._is_closing:
            raise SpecdecError("this batch is closed: make another one")

    def _cancel(self, ticket: _Ticket) -> None:
        with self._changed:
            self._cancelled.append(ticket)
            self._changed.notify()

    def _work(self) -> None:
        """The thread: take requests, run steps, hand out pieces."""
        try:
            while self._take():
                with self._model.lock:
                    events = self._scheduler.step()
                    for event in events:
                        self._deliver(event)
        except BaseException as error:  # nothing may leave readers waiting
            self._end(error)
            raise
        self._end(None)

    def _take(self) -> bool:
        """Let new requests in and cancelled ones out, waiting while there is nothing to do; False at the end."""
        with self._changed:
            while not (self._is_closing or self._new or self._cancelled or self._tickets):
                self._changed.wait()
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
            closing = self._is_closing
        for ticket in new:
            self._tickets[id(ticket.sequence)] = ticket
            self._scheduler.add(ticket.sequence)
        for ticket in cancelled:
            self._finish(ticket, None)
        return not closing

    def _deliver(self, event: Event) -> None:
        ticket = self._tickets[id(event.sequence)]
        try:
            piece = apply(event, ticket.answer)
        except Exception as error:
            self._finish(ticket, error)
            return
        if piece is not None:
            ticket.put(piece)
        if ticket.answer.stopped_by is not None:
            self._finish(ticket, None)

    def _finish(self, ticket: _Ticket, error: BaseException | None) -> None:
        if self._tickets.pop(id(ticket.sequence), None) is None:
            return  # ended already
        self._scheduler.remove(ticket.sequence)
        try:
            ticket.answer.close()
        except SpecdecError as problem:  # the trace cannot be written
            error = error or problem
        ticket.put(error)

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._is_closing = True
            left, self._new = self._new, []
        for ticket in left:
            ticket.answer.close()
            ticket.put(error)
        for ticket in list(self._tickets.values()):
            self._finish(ticket, error)
