"""A lock whose waiters take turns: `Turns`."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A fair re-entrant lock: the thread that has waited longest gets it.

    A thread that runs pass after pass releases and takes its lock within microseconds. With Python's own locks a waiter
    may never be quick enough to get it in between; here it gets the next turn.
    """

    def __init__(self) -> None:
        self._gate = threading.Lock()  # of the fields below; held for moments only
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    def acquire(self) -> None:
        """Wait for the turn. An interrupt while waiting gives up the place."""
        me = threading.get_ident()
        with self._gate:
            if self._owner == me or (self._owner is None and not self._waiting):
                self._owner, self._depth = me, self._depth + 1
                return
            turn = threading.Lock()
            turn.acquire()
            place = (me, turn)
            self._waiting.append(place)
        try:
            turn.acquire()
        except BaseException:
            with self._gate:
                if place in self._waiting:
                    self._waiting.remove(place)
                elif self._owner == me:  # the turn came in the same moment
                    self._hand_on()
            raise

    def release(self) -> None:
        """End the turn; the one who has waited longest has the next.

        Raises:
            RuntimeError: this thread does not have it.
        """
        with self._gate:
            if self._owner != threading.get_ident():
                raise RuntimeError("only the thread whose turn it is can end it")
            self._depth -= 1
            if not self._depth:
                self._hand_on()

    def _hand_on(self) -> None:
        self._owner, self._depth = None, 0
        if self._waiting:
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.release()

    def __enter__(self) -> Turns:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
