"""Signals that ask a command to end: `ending`, around a whole command. They unwind it, so that it clears up.

An exception that a handler raises may get lost: Python reports and drops what finalisers and callbacks raise, a library
may drop all exceptions of something that it tries. One that is lost is raised again, until the command has ended.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from specdec.cli.startup import quit_at_once
from specdec.cli.waker import Waker

_PATIENCE_S = 3.0  # for clearing up, in which further signals do nothing; later ones interrupt that, too
_JUST_S = 2.0
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler, quit_at_once)
_BASE = 128  # an exit code of this and a signal's number says that the signal ended the command


class _Raised(BaseException):
    """Reports its own loss: nobody refers to it any more, and nobody has taken it (`interrupts.take_interrupt`)."""

    is_taken = False
    report: Callable[[], None] | None = None

    def __del__(self) -> None:
        if self.report is not None and not self.is_taken:
            self.report()


class Interrupted(_Raised, KeyboardInterrupt):
    """SIGINT interrupts the command, or a part of it that takes the exception."""


class Ended(_Raised, SystemExit):
    """SIGTERM or SIGHUP asks the whole command to end.

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
        has_begun: signals raise exceptions; earlier ones wait for `begin`.
        is_over: the command has done all that it will do: signals change nothing any more.
        number: of the signal that ended the command; None while none has.
    """

    has_begun: bool = False
    is_over: bool = False
    number: int | None = None
    _came_s: float = float("-inf")
    _is_due: bool = False
    _waker: Waker = field(init=False)

    def __post_init__(self) -> None:
        self._waker = Waker(self.look)

    def begin(self) -> None:
        """From now on signals raise exceptions.

        Raises:
            KeyboardInterrupt: SIGINT came before.
            Ended: one of the others did.
        """
        self.has_begun = True
        self.look()

    @property
    def has_just_come(self) -> bool:
        """Whether a signal came a moment ago, so that what goes wrong now may be its doing."""
        return time.monotonic() - self._came_s < _JUST_S

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGINT.

        Raises:
            KeyboardInterrupt: always, until the command is over.
        """
        self._came_s = time.monotonic()
        self._is_due = True
        self.look()

    def end(self, number: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGHUP.

        Raises:
            Ended: the first time, and again when clearing up takes long.
        """
        now = time.monotonic()
        if self.number is not None and now - self._came_s < _PATIENCE_S:
            return
        self.number, self._came_s = self.number or number, now
        self._is_due = True
        self.look()

    def look(self) -> None:
        """Raise the exception that a signal has yet to raise, or that was lost."""
        if not self._is_due or not self.has_begun or self.is_over:
            return
        self._is_due = False
        error = self.exception()
        error.report = self._lose
        try:
            raise error
        finally:
            del error  # its traceback has this frame: each would keep the other alive

    def exception(self) -> Interrupted | Ended:
        """What stands for the signals that came."""
        return Interrupted() if self.number is None else Ended(self.number)

    def _lose(self) -> None:
        self._is_due = True
        self._waker.wake()


@contextlib.contextmanager
def ending(*, for_good: bool = False) -> Iterator[Ending]:
    """Meanwhile SIGINT raises KeyboardInterrupt in the main thread, and SIGTERM and SIGHUP raise `Ended`.

    Signals that are ignored (`nohup`, a background command of a shell) stay so, and so do handlers of the program that
    runs the command.

    Args:
        for_good: the program ends after this: then the signals are ignored, for its exit code stands.
    """
    state = Ending()
    with state._waker, _handling(state, for_good=for_good), _unreported():
        yield state


def is_signals_doing(error: BaseException) -> bool:
    """Whether an error came up when an exception of `Ending` was on its way."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if isinstance(one, _Raised) and not one.is_taken:
            return True
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            rest += [one.__context__, one.__cause__]
    return False


@contextlib.contextmanager
def _handling(state: Ending, *, for_good: bool) -> Iterator[None]:
    """Have `state` handle signals meanwhile; see `ending`."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name, handler in (("SIGINT", state.interrupt), ("SIGTERM", state.end), ("SIGHUP", state.end)):
            number = getattr(signal, name, None)  # some systems lack the last one
            if number is not None and signal.getsignal(number) in _DEFAULTS:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_IGN if for_good else former)


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Meanwhile Python says nothing of a signal's exception that a finaliser or a callback has lost."""
    before = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, _Raised):
            before(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before
