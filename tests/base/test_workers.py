"""Threads that work for the main thread, also when a signal handler raises in the middle of it."""

from __future__ import annotations

import signal
import threading
import time
from functools import partial

import pytest

from specdec.workers import Workers


def test_results_come_in_the_order_of_the_jobs() -> None:
    def late(number: int) -> int:
        time.sleep(0.01 * (3 - number))
        return number * number

    with Workers(3) as workers:
        jobs = [workers.submit(partial(late, number)) for number in range(4)]
        assert [job.result() for job in jobs] == [0, 1, 4, 9]


def test_what_a_job_raises_is_raised_where_its_result_is_asked_for() -> None:
    def wrong() -> int:
        raise ValueError("wrong")

    with Workers(2) as workers:
        first, second = workers.submit(wrong), workers.submit(lambda: 7)
        with pytest.raises(ValueError, match="wrong"):
            first.result()
        assert second.result() == 7


def test_the_end_waits_for_what_has_begun_and_drops_the_rest() -> None:
    begun, done = threading.Event(), []

    def slow(number: int) -> None:
        begun.set()
        time.sleep(0.1)
        done.append(number)

    with Workers(1) as workers:
        for number in range(50):
            workers.submit(partial(slow, number))
        begun.wait(10)
    assert done == [0]
    time.sleep(0.15)
    assert done == [0]


def test_a_handler_that_raises_leaves_no_thread_at_work() -> None:
    class AlarmError(Exception):
        pass

    def handle(*_: object) -> None:
        raise AlarmError

    at_work: list[int] = []

    def short(number: int) -> int:
        at_work.append(number)
        time.sleep(0.0005)
        at_work.remove(number)
        return number

    before = signal.signal(signal.SIGALRM, handle)
    interrupted = 0
    try:
        for turn in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + turn * 0.00004)
                with Workers(2) as workers:
                    for job in [workers.submit(partial(short, number)) for number in range(8)]:
                        job.result()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except AlarmError:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert at_work == []
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20
