"""Many answers of one model at once: `Batch` takes requests at any time, from any thread.

`admission` chooses which requests run, `scheduler` runs the rounds, and a caller reads from `ticket`.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from specdec.checks import as_number
from specdec.engine.admission import Admission
from specdec.engine.generation import Generation
from specdec.engine.limits import check_limits
from specdec.engine.result import Piece
from specdec.engine.scheduler import Event, Scheduler
from specdec.engine.status import BatchStatus, Rates
from specdec.engine.ticket import Reading, Ticket, wake
from specdec.engine.together import apply
from specdec.errors import InvalidArgumentError, QueueFullError, SpecdecError
from specdec.progress import Progress
from specdec.runtimes.base import MAX_PASS_ROWS, MAX_SEQUENCES

if TYPE_CHECKING:
    from typing import Unpack

    from specdec.engine.options import OptionArguments
    from specdec.engine.prompt import Prompt
    from specdec.model.loaded import Model

_STATUS_S = 0.25  # seconds after which a status is renewed
_BYTES = 1 << 30  # of keys and values, where the caller names no bound and the system does not say what is free


class Batch:
    """Answers many requests of one model together: the weights are read once a pass for all of them.

    `submit` may be called from any thread at any time; what it returns is read in any thread, with `for` or `async
    for`, while others are read elsewhere. Each answer has the tokens that it would have alone. A thread of the batch's
    own runs the passes; it ends with `close`, or with the `with` block.

    Texts of earlier answers and of those under way are not read again where a new prompt begins like them, as far as
    `cache_bytes` allows. `Model.prompt_cache` has no part in it.

    Args:
        model: from `specdec.load`. Other generations of it may run meanwhile; rounds take turns.
        max_sequences: most answers that grow together; others wait for their turn, first come, first served.
        max_rows: most rows of a pass, of prompts and of answers.
        cache_bytes: most bytes of keys and values, of answers and of kept texts together. A request waits until its
            worst case fits. None allows half of the memory that is free now.
        queue: most requests that wait; None for any number.

    Raises:
        InvalidArgumentError: a number is out of range.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_sequences: int = MAX_SEQUENCES,
        max_rows: int = MAX_PASS_ROWS,
        cache_bytes: int | None = None,
        queue: int | None = None,
    ) -> None:
        from specdec.engine.begin import check_model

        check_model(model, "Batch")
        check_limits(max_sequences=max_sequences, max_rows=max_rows, cache_bytes=cache_bytes, queue=queue)
        # NumPy's numbers are no part of a status.
        max_sequences, max_rows, queue = int(max_sequences), int(max_rows), None if queue is None else int(queue)
        cache_bytes = _half_of_memory() if cache_bytes is None else int(cache_bytes)
        self._model, self._queue, self._max_sequences = model, queue, max_sequences
        costs = model.memory.passes
        self._scheduler = Scheduler(model.runtime, max_sequences=max_sequences, max_rows=max_rows, costs=costs)
        self._admission = Admission(max_sequences=max_sequences, cache_bytes=cache_bytes)
        self._rates = Rates()
        self._tickets: dict[int, Ticket] = {}  # by id of the sequence; the thread's own, as the next
        self._handed: list[Ticket] = []  # that something was handed to, and whose readers do not know
        self._changed = threading.Condition()  # of the fields below
        self._new: list[Ticket] = []
        self._cancelled: list[Ticket] = []
        self._places, self._bytes = max_sequences, cache_bytes  # that are free, as far as the thread has said
        self._tokens_left = 0  # of the running answer that is nearest to its end
        self._waiting = 0  # requests that had to wait when they came, or have waited since
        self._is_closing = self._is_finishing = self._has_ended = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._status, self._told_s = self._look(), 0.0

    def submit(
        self,
        prompt: Prompt,
        *,
        owner: str = "",
        deadline_s: float | None = None,
        progress: Progress | None = None,
        **options: Unpack[OptionArguments],
    ) -> Generation:
        """Begin an answer; the other arguments, errors and warnings are those of `specdec.stream`.

        Args:
            prompt: text, token ids, or chat messages.
            owner: only requests of equal owners share what was read of prompts and answers, and drafts from answers.
            deadline_s: seconds from now after which the answer ends at the next pass boundary, waiting included, with
                `stopped_by` "deadline" and the `finish_reason` "length".
            progress: see `specdec.stream`; the batch's thread calls it as the prompt is read.
            options: see `specdec.Options`.

        Raises:
            QueueFullError: as many requests wait as may.
            ContextLengthError: the prompt leaves no room in the model's context.
            InvalidArgumentError: an argument is out of range, or the request can never fit into `cache_bytes`.
            SpecdecError: the batch is closed, or its thread has failed.
        """
        from specdec.engine.begin import ask

        if not isinstance(owner, str):
            raise InvalidArgumentError(f"owner must be text, not {owner!r}")
        if deadline_s is not None and not 0 < as_number(deadline_s) < math.inf:
            raise InvalidArgumentError(f"deadline_s must be a number of seconds above 0, not {deadline_s!r}")
        with self._changed:
            self._check_open()
            if self._is_full and (self._waiting or not self._places):  # whatever the request is
                raise QueueFullError(self._waiting, self._seconds_to_room())
        answer = ask(self._model, prompt, options, caller="submit", owner=owner, progress=progress)
        ticket = Ticket(answer, owner=owner, deadline_s=deadline_s)
        try:
            ticket.worst_bytes = self._admission.worst_bytes(ticket)
            with self._changed:
                self._check_open()
                self._enqueue(ticket)
        except BaseException:
            ticket.answer.close()
            raise
        return Reading(ticket, self._cancel, self._check_reader)

    def status(self) -> BatchStatus:
        """What the batch is doing, as of the last pass."""
        return self._status

    def close(self, *, finish: bool = False, timeout_s: float | None = None) -> None:
        """Refuse new requests, end the answers and wait for the thread; more than once does no harm.

        Args:
            finish: let the answers that run or wait come to their ends; False ends them at the next pass boundary.
            timeout_s: seconds after which those that have not ended are ended; None waits as long as it takes.

        Raises:
            InvalidArgumentError: `timeout_s` is not a number of at least 0.
        """
        if timeout_s is not None and not 0 <= as_number(timeout_s) < math.inf:
            raise InvalidArgumentError(f"timeout_s must be a number of seconds of at least 0, not {timeout_s!r}")
        with self._changed:
            self._is_closing = True
            self._is_finishing = finish
            self._changed.notify()
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        if finish:
            thread.join(timeout_s)
            with self._changed:
                self._is_finishing = False
                self._changed.notify()
        thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def failure(self) -> BaseException | None:
        """What ended the batch's thread before `close`, if anything did: no request is answered after that."""
        return self._failure

    def __len__(self) -> int:
        """Answers that grow or wait."""
        return len(self._tickets) + len(self._new)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise _ended_by(self._failure) from self._failure
        if self._is_closing:
            raise SpecdecError("this batch is closed: make another one")
        self._check_process()

    def _check_process(self) -> None:
        """Refuse a process that was forked: the thread stayed in the other one.

        Raises:
            SpecdecError: this is such a process.
        """
        if self._thread is not None and not self._thread.is_alive() and not self._has_ended:
            raise SpecdecError("this batch began before this process was forked: load the model again here")

    @property
    def _is_full(self) -> bool:
        """Whether no more requests may wait."""
        return self._queue is not None and self._waiting >= self._queue

    def _fits(self, ticket: Ticket) -> bool:
        """Whether a new request need not wait."""
        return not self._waiting and self._places > 0 and ticket.worst_bytes <= self._bytes

    def _count(self, ticket: Ticket) -> None:
        """Take the room of a new request, or let it wait."""
        if self._fits(ticket):
            self._places -= 1
            self._bytes -= ticket.worst_bytes
        else:
            self._waiting += 1

    def _enqueue(self, ticket: Ticket) -> None:
        """Hand a request to the thread.

        Raises:
            QueueFullError: it would have to wait, and too many do.
        """
        if self._is_full and not self._fits(ticket):
            raise QueueFullError(self._waiting, self._seconds_to_room())
        self._count(ticket)
        self._new.append(ticket)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="specdec batch", daemon=True)
            self._thread.start()
            # A thread in the middle of a pass must not outlive the interpreter.
            atexit.register(self.close)
        self._changed.notify()

    def _seconds_to_room(self) -> float:
        return self._rates.seconds_to_next_end(self._tokens_left, self._status.running)

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            if self._has_ended:
                return
            self._cancelled.append(ticket)
            self._changed.notify()

    def _check_reader(self) -> None:
        """Refuse the batch's own thread, in which progress functions and logits processors are called, and forks.

        Raises:
            SpecdecError: the reader would wait without end.
        """
        self._check_process()
        if threading.current_thread() is self._thread:
            raise SpecdecError("the thread of a batch runs its passes, so what it calls cannot read an answer of it")

    def _work(self) -> None:
        """The thread: take requests, run steps, hand out pieces."""
        try:
            while self._take():
                with self._model.lock:
                    self._let_out()
                    self._start()
                    self._step()
                self._tell()
                self._wake()
        except BaseException as error:  # nothing may leave readers waiting
            self._end(error)
            raise
        self._end(None)

    def _take(self) -> bool:
        """Take new requests, waiting while there is nothing to do; False at the end."""
        with self._changed:
            while not (self._is_closing or self._new or self._cancelled or self._tickets):
                self._changed.wait()
            new, self._new = self._new, []
            goes_on = not self._is_closing or (self._is_finishing and bool(new or self._tickets))
        for ticket in new:
            self._tickets[ticket.number] = ticket
            self._admission.join(ticket)
        return goes_on

    def _let_out(self) -> None:
        """End answers that nobody reads any longer or that are past their deadline."""
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
        for ticket in cancelled:
            self._finish(ticket, None)
        now_s = time.monotonic()
        for ticket in list(self._tickets.values()):
            if ticket.ends_at_s is not None and now_s >= ticket.ends_at_s:
                self._put(ticket, ticket.answer.expire())
                self._finish(ticket, None)

    def _start(self) -> None:
        """Admit waiting requests that fit, and begin their prompts."""
        while (start := self._admission.next()) is not None:
            try:
                start.ticket.answer.start(start.cache, measures=not len(self._scheduler))
            except Exception as error:
                self._finish(start.ticket, error)
            else:
                self._scheduler.add(start.ticket.sequence)

    def _step(self) -> None:
        start_s, tokens = time.perf_counter(), 0
        for event in self._scheduler.step():
            tokens += self._deliver(event)
        self._rates.worked(time.perf_counter() - start_s, tokens)

    def _deliver(self, event: Event) -> int:
        """Hand out what a step did for a sequence; returns the number of tokens."""
        ticket = self._tickets[id(event.sequence)]
        try:
            piece = apply(event, ticket.answer)
        except Exception as error:
            self._finish(ticket, error)
            return 0
        if piece is not None:
            self._put(ticket, piece)
        if ticket.answer.stopped_by is not None:
            self._finish(ticket, None)
        return 0 if piece is None else len(piece.tokens)

    def _finish(self, ticket: Ticket, error: BaseException | None) -> None:
        if self._tickets.get(ticket.number) is not ticket:
            return  # ended already, and another sequence may have its number now
        del self._tickets[ticket.number]
        self._scheduler.remove(ticket.sequence)
        self._rates.end()
        try:
            ticket.answer.close()
        except SpecdecError as problem:  # the trace cannot be written
            error = error or problem
        finally:
            self._put(ticket, error)
            self._admission.leave(ticket)
            ticket.drop()

    def _put(self, ticket: Ticket, item: Piece | BaseException | None) -> None:
        """Hand something over; `_wake` comes later."""
        ticket.put(item)
        self._handed.append(ticket)

    def _wake(self) -> None:
        """Tell those who await what was handed over, all at once: it takes system calls."""
        handed, self._handed = self._handed, []
        wake(handed)

    def _tell(self) -> None:
        """Say what the batch is doing and how much room there is, now and then or when that has changed."""
        admission, now_s = self._admission, time.monotonic()
        if not admission.has_changed and now_s < self._told_s + _STATUS_S:
            return
        admission.has_changed, self._told_s = False, now_s
        status = self._look()
        sequences = [ticket.sequence for ticket in admission.running]
        self._tokens_left = min((one.limit - len(one.tokens) for one in sequences), default=0)
        with self._changed:
            self._waiting, self._places = len(admission.waiting), self._max_sequences - len(admission.running)
            self._bytes = admission.cache_bytes - status.cache_bytes_reserved
            for ticket in self._new:
                self._count(ticket)
            self._status = status

    def _look(self) -> BatchStatus:
        admission, rates = self._admission, self._rates
        running = len(admission.running)
        return BatchStatus(
            running=running,
            waiting=len(admission.waiting),
            max_sequences=self._max_sequences,
            queue=self._queue,
            cache_bytes=admission.cache_bytes,
            cache_bytes_used=admission.used_bytes(),
            cache_bytes_reserved=admission.reserved_bytes(),
            kept_texts=len(admission.texts),
            prompt_tokens=admission.prompt_tokens,
            cached_prompt_tokens=admission.cached_prompt_tokens,
            generated_tokens=rates.tokens,
            ended=rates.ended,
            tok_per_s=rates.tok_per_s if running else 0.0,
        )

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._is_closing = self._has_ended = True
            self._failure = error
            left, self._new = self._new, []
        if error is not None and not isinstance(error, Exception):  # an exit of this thread is not its readers'
            error = _ended_by(error)
        with self._model.lock:
            for ticket in left:
                ticket.answer.close()
                self._put(ticket, error)
            for ticket in list(self._tickets.values()):
                with contextlib.suppress(Exception):  # its reader knows, and there are others
                    self._finish(ticket, error)
        self._wake()


def _ended_by(failure: BaseException) -> SpecdecError:
    """What there is to say of a batch whose thread failed."""
    kind = type(failure).__name__
    return SpecdecError(f"this batch has ended, because its thread failed: {kind}: {failure}; make another one")


def _half_of_memory() -> int:
    """Bytes of keys and values where the caller names no bound."""
    from specdec.runtimes.memory import available_bytes

    free = available_bytes()
    return _BYTES if free is None else max(1, free // 2)
