"""Signals that ask a command to end: `ending`, around a whole command. They unwind it, so that it clears up."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP")
_PATIENCE_S = 3.0  # for clearing up, in which further signals do nothing; later ones interrupt that, too
_BASE = 128  # an exit code of this and a signal's number says that the signal ended the command


@dataclass(slots=True)
class Ending:
    """Which signal asked the command to end.

    Attributes:
        number: of the first signal that came; None while none has.
        is_over: the command has done all that it will do, and signals change nothing any more.
    """

    number: int | None = None
    is_over: bool = False
    _came_s: float = 0.0

    @property
    def exit_code(self) -> int | None:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP; None where no signal came."""
        return None if self.number is None else _BASE + self.number

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The handler.

        Raises:
            KeyboardInterrupt: the first time, and again when clearing up takes long.
        """
        now = time.monotonic()
        is_late = self.number is not None and now - self._came_s < _PATIENCE_S
        if self.is_over or is_late:
            return
        self.number = self.number or number
        self._came_s = now
        raise KeyboardInterrupt


@contextlib.contextmanager
def ending(*, for_good: bool = False) -> Iterator[Ending]:
    """Meanwhile SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread.

    Signals that are ignored (`nohup`, a background command of a shell) stay so, and so do handlers of the program that
    runs the command.

    Args:
        for_good: the program ends after this: then the signals are ignored, for its exit code stands.
    """
    state = Ending()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _ASKING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, state)
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if for_good else handler)
