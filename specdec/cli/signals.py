"""Signals that ask a command to end: `ending`, around a whole command. They unwind it, so that it clears up."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_PATIENCE_S = 3.0  # for clearing up, in which further signals do nothing; later ones interrupt that, too
_JUST_S = 2.0
_BASE = 128  # an exit code of this and a signal's number says that the signal ended the command


class Ended(SystemExit):
    """SIGTERM or SIGHUP asks the whole command to end; an interrupt, for which KeyboardInterrupt stands, may be for a
    part of it.

    Args:
        number: of the signal.

    Attributes:
        status: exit code of the command.
        name: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.status = _BASE + number
        super().__init__(self.status)
        self.name = signal.Signals(number).name


@dataclass(slots=True)
class Ending:
    """Signals that came.

    Attributes:
        is_over: the command has done all that it will do: signals change nothing any more.
        number: of the signal that ended the command; None while none has.
    """

    is_over: bool = False
    number: int | None = None
    _came_s: float = float("-inf")

    @property
    def has_just_come(self) -> bool:
        """Whether a signal came a moment ago, so that what goes wrong now may be its doing."""
        return time.monotonic() - self._came_s < _JUST_S

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGINT.

        Raises:
            KeyboardInterrupt: always, until the command is over.
        """
        if not self.is_over:
            self._came_s = time.monotonic()
            raise KeyboardInterrupt

    def end(self, number: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGHUP.

        Raises:
            Ended: the first time, and again when clearing up takes long.
        """
        now = time.monotonic()
        if self.is_over or (self.number is not None and now - self._came_s < _PATIENCE_S):
            return
        self.number, self._came_s = self.number or number, now
        raise Ended(self.number)


@contextlib.contextmanager
def ending(*, for_good: bool = False) -> Iterator[Ending]:
    """Meanwhile SIGINT raises KeyboardInterrupt in the main thread, and SIGTERM and SIGHUP raise `Ended`.

    Signals that are ignored (`nohup`, a background command of a shell) stay so, and so do handlers of the program that
    runs the command.

    Args:
        for_good: the program ends after this: then the signals are ignored, for its exit code stands.
    """
    state = Ending()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name, handler in (("SIGINT", state.interrupt), ("SIGTERM", state.end), ("SIGHUP", state.end)):
            number = getattr(signal, name, None)  # some systems lack the last one
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handler)
    try:
        yield state
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_IGN if for_good else former)
