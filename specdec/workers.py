"""Threads that work for the main thread: `Workers`. What a signal handler raises in the main thread leaves none stuck.

The pools of the standard library hold locks of Python code: an exception that a handler raises between taking one and
entering its block leaves it taken, and then the pool waits for ever. Here only queues written in C are shared.
"""

from __future__ import annotations

import _thread
import queue
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_LOOK_S = 0.05  # from one look at whether all threads have ended to the next


class Job(Generic[_T]):
    """Something to be done by a thread.

    Args:
        work: does it.
    """

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._outcome: queue.SimpleQueue[tuple[_T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run(self) -> None:
        """Do it, in the thread that calls this; `result` has what came of it."""
        try:
            self._outcome.put((self._work(), None))
        except BaseException as error:
            self._outcome.put((None, error))

    def result(self) -> _T:
        """What came of it, once; waits for it.

        Raises:
            BaseException: what the work has raised.
        """
        value, error = self._outcome.get()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


class Workers:
    """Threads that do jobs in the order in which they come, until the end of the `with` block.

    When the block ends, what has not begun is dropped, and what has begun is waited for.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._begun: list[int] = []  # a thread adds itself before its first job, and to the other list after its last
        self._finished: list[int] = []
        self._is_over = False
        self._threads = threads

    def __enter__(self) -> Workers:
        for _ in range(self._threads):
            _thread.start_new_thread(self._run, ())
        return self

    def submit(self, work: Callable[[], _T]) -> Job[_T]:
        """Have a thread do something."""
        job = Job(work)
        self._jobs.put(job)
        return job

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raised: BaseException | None = None
        while True:
            try:
                self._is_over = True
                if len(self._finished) >= len(self._begun):
                    break
                self._jobs.put(None)
                self._ended.get(timeout=_LOOK_S)
            except queue.Empty:
                pass
            except BaseException as another:  # of a handler: it has to wait until nothing is in use any more
                raised = another
        for _ in range(self._threads):
            self._jobs.put(None)
        if raised is not None:
            raise raised

    def _run(self) -> None:
        self._begun.append(_thread.get_ident())
        while (job := self._jobs.get()) is not None and not self._is_over:
            job.run()
            del job
        self._finished.append(_thread.get_ident())
        self._ended.put(None)


def run_together(works: Sequence[Callable[[], _T]]) -> list[_T]:
    """Do all of it at the same time, each in a thread; returns what came of them in their order.

    Raises:
        BaseException: what the first of them that fails has raised.
    """
    with Workers(len(works)) as workers:
        jobs = [workers.submit(work) for work in works]
        return [job.result() for job in jobs]
