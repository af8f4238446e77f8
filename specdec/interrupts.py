"""Exceptions that a caller's signal handler raises in the middle of our work: they are the caller's, and go to it as
they are. Python runs handlers between any two steps of the main thread, so they come up inside any `try`."""

from __future__ import annotations

import functools
import signal
import sys
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any, TypeVar

_Error = TypeVar("_Error", bound=BaseException)


def is_from_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler raised the exception, rather than the code that it passed through.

    Code that turns foreign exceptions into errors of its own asks this first, and lets those pass.
    """
    trace, handlers = error.__traceback__, None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_back is not None and _is_handler(frame, frame.f_back):
            return True
        handlers = _handlers() if handlers is None else handlers
        if frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def unless_signalled(*kinds: type[_Error]) -> tuple[type[_Error], ...]:
    """What an `except` clause catches, when the caller's signal handlers may raise the same kinds of exceptions.

    Args:
        kinds: to be caught.

    Returns:
        The kinds; nothing when the exception that is handled right now is a signal handler's, so that it passes on.
    """
    error = sys.exc_info()[1]
    return () if error is not None and is_from_signal_handler(error) else kinds


def take_interrupt(interrupt: KeyboardInterrupt) -> None:
    """Say that an interrupt ends here: it was meant for a part of the command, and the rest goes on. The command line
    raises one again that is dropped by anybody else.
    """
    one: BaseException | None = interrupt
    while one is not None:  # and the earlier ones that it came after
        if isinstance(one, KeyboardInterrupt):
            one.is_taken = True  # type: ignore[attr-defined]
        one = one.__context__


def _is_handler(frame: FrameType, interrupted: FrameType) -> bool:
    """Whether `frame` was called with the frame below it as an argument, which only Python itself does."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & _VARARGS)
    if count == 0:
        return False
    values = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
    given = [part for one in values for part in (one[:2] if isinstance(one, tuple) else (one,))]
    return any(one is interrupted for one in given)


def _handlers() -> set[CodeType]:
    """Code of the handlers that are installed now."""
    found: set[CodeType] = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        if not callable(handler):
            continue
        while isinstance(handler, functools.partial):
            handler = handler.func
        if not isinstance(handler, FunctionType | MethodType):
            handler = type(handler).__call__  # an object; its own attributes may be anything
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            found.add(code)
    return found


_VARARGS = 0x04  # inspect.CO_VARARGS
