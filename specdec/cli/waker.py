"""Wakes the main thread for signals that it would sleep through: `Waker`. What signals do is in `signals`.

The system may deliver a signal to any thread, and Python runs its handler in the main thread, between two steps. A
signal that comes just before the main thread begins to wait, or to another thread meanwhile, is noticed when that wait
is over, which may be never. So every signal is followed by another one to the main thread, which interrupts the wait
and does nothing else. It is repeated until the main thread has looked.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType

# Ignored unless a handler is there; sockets send it for data that hardly any program uses.
_WAKE_UP = signal.SIGURG
_FIRST_S, _MOST_S = 0.05, 1.0  # to the first reminder after a signal, and at most from one to the next
_OTHER = 0x00  # written to the pipe, where the system writes numbers of signals


class Waker:
    """In its block, the main thread hears of every signal that has a handler.

    Does nothing where it is not the main thread that enters the block, or where the program uses the signal or
    `signal.set_wakeup_fd` itself.

    Args:
        look: is called in the main thread after every signal and every `wake`; may raise.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._looks = 0
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._former: signal._HANDLER = None

    def __enter__(self) -> Waker:
        if threading.current_thread() is not threading.main_thread():
            return self
        if signal.getsignal(_WAKE_UP) not in (signal.SIG_DFL, signal.SIG_IGN):
            return self
        with contextlib.suppress(OSError, RuntimeError):  # no more files or threads: signals go their usual way
            self._begin()
        return self

    def _begin(self) -> None:
        self._pipe = reader, writer = os.pipe()
        os.set_blocking(writer, False)
        if (other := signal.set_wakeup_fd(writer, warn_on_full_buffer=False)) != -1:
            signal.set_wakeup_fd(other)
            return
        self._former = signal.signal(_WAKE_UP, self._handle)
        thread = threading.Thread(target=self._watch, args=(reader,), name="specdec-waker", daemon=True)
        thread.start()
        self._thread = thread

    def __exit__(self, *_: object) -> None:
        if self._pipe is None:
            return
        reader, writer = self._pipe
        if self._former is not None:
            if (other := signal.set_wakeup_fd(-1)) != writer:
                signal.set_wakeup_fd(other)
            signal.signal(_WAKE_UP, self._former)
        self._pipe = None
        os.close(writer)
        if self._thread is not None:
            self._thread.join()
        os.close(reader)

    def wake(self) -> None:
        """Have the main thread look soon; may be called in any thread, and by finalisers."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # full: it is going to look anyway
                os.write(self._pipe[1], bytes([_OTHER]))

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._looks += 1
        self._look()

    def _watch(self, reader: int) -> None:
        """Remind the main thread of what comes through the pipe until it has looked once more."""
        main, poll = threading.main_thread().ident or 0, select.poll()
        poll.register(reader, select.POLLIN)
        wait_s: float | None = None
        target = 0
        while True:
            if poll.poll(None if wait_s is None else 1000 * wait_s):
                came = os.read(reader, 4096)
                if not came:
                    return
                if any(byte != _WAKE_UP for byte in came):
                    target, wait_s = self._looks + 1, _FIRST_S
            elif wait_s is not None:
                signal.pthread_kill(main, _WAKE_UP)
                wait_s = min(2 * wait_s, _MOST_S)
            if self._looks >= target:
                wait_s = None
