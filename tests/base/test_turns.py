"""A lock whose waiters take turns."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest

from specdec.turns import Turns


def test_it_is_re_entrant_and_knows_its_owner():
    turns = Turns()
    with turns, turns:
        told: list[str] = []

        def intrude() -> None:
            try:
                turns.release()
            except RuntimeError as error:
                told.append(str(error))

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        assert told == ["only the thread whose turn it is can end it"]
    with pytest.raises(RuntimeError):
        turns.release()


def test_waiters_go_in_order_and_a_greedy_thread_waits_for_them():
    turns, order, done = Turns(), [], threading.Event()

    def greedy() -> None:
        while not done.is_set():
            with turns:
                order.append("greedy")
                time.sleep(0.001)

    def one(name: str) -> None:
        with turns:
            order.append(name)

    hog = threading.Thread(target=greedy)
    hog.start()
    for number in range(20):
        waiter = threading.Thread(target=one, args=(str(number),))
        began = len(order)
        waiter.start()
        waiter.join(30)
        assert not waiter.is_alive()
        assert len(order) - began < 60
    done.set()
    hog.join()
    assert [name for name in order if name != "greedy"] == [str(number) for number in range(20)]


def test_many_threads_exclude_each_other():
    turns, inside, seen = Turns(), [], []

    def work() -> None:
        for _ in range(200):
            with turns:
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 1600
    assert set(seen) == {1}


def test_who_is_interrupted_while_waiting_gives_up_the_place():
    turns = Turns()
    turns.acquire()
    ended: list[str] = []

    def wait() -> None:
        try:
            turns.acquire()
        except KeyboardInterrupt:
            ended.append("interrupted")

    # The exception is raised in the thread when it next runs Python code, which is when its turn comes.
    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    assert waiter.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(waiter.ident), ctypes.py_object(KeyboardInterrupt))
    turns.release()
    waiter.join(30)
    assert ended == ["interrupted"]
    with turns:  # free again
        pass
