"""How long work is reported: the `Progress` protocol, and printers for a terminal or a log. No work is done here."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, TextIO, TypeAlias, TypeVar

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.message_stream import MessageStream

_UNKNOWN = (80, 24)  # columns and lines of a terminal that does not say
T = TypeVar("T")

Count: TypeAlias = Callable[[int, int], None]
"""Called with units done and units in all as work goes on, first with those done before."""


class Progress(Protocol):
    """Called as work goes on; the first call of a stage announces it, the call with `done == total` ends it."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `stage` are done: bytes of a download, weights of a conversion, tokens
        of a prompt, matrices of a draft view."""
        ...


def reported(items: Collection[T], count: Count | None) -> Iterator[T]:
    """The items, one by one; each counts as done when the next one is asked for."""
    total = len(items)
    if count is not None and total:
        count(0, total)
    for done, item in enumerate(items, start=1):
        yield item
        if count is not None:
            count(done, total)


class Summed:
    """Reports several pieces of work that go on side by side as one: what is done and what is to do are added up.

    Args:
        progress: reports all of them.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._parts: dict[str, dict[int, tuple[int, int]]] = {}  # by stage and number of the part
        self._number = 0

    def part(self) -> Progress:
        """A callback for one of them."""
        self._number += 1
        number = self._number

        def report(stage: str, done: int, total: int) -> None:
            parts = self._parts.setdefault(stage, {})
            parts[number] = (done, total)
            self._progress(stage, sum(one[0] for one in parts.values()), sum(one[1] for one in parts.values()))

        return report


def check_progress(progress: object) -> None:
    """Refuse what cannot be called.

    Raises:
        InvalidArgumentError: it is neither None nor callable.
    """
    if progress is not None and not callable(progress):
        raise InvalidArgumentError(f"progress must be a function of stage, done and total, not {progress!r}")


class CallersProgress:
    """A caller's progress function, whose exceptions are the caller's: `is_from_progress` tells them from others.

    A StopIteration becomes a RuntimeError, as in a generator (PEP 479): a reader's loop would take it for the end of
    the answer.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Progress`."""
        try:
            self._progress(stage, done, total)
        except (StopIteration, StopAsyncIteration) as error:
            raise RuntimeError(f"progress raised {type(error).__name__}") from error


def is_from_progress(error: BaseException) -> bool:
    """Whether a caller's progress function raised the exception, rather than the code that called it."""
    code = CallersProgress.__call__.__code__
    return any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))


class StreamProgress:
    """Prints progress to a text stream: a bar when it is a terminal, else a line at the start of a stage and one every
    `interval_s` seconds. Both tell how much time is left, going by what the stage has taken so far.

    Args:
        stream: where to print; None is standard error. Where it is closed or full, nothing is printed.
        interval_s: seconds between lines.
        delay_s: seconds that a stage may take before a terminal shows it; a stage that was shown late goes away at its
            end.
        lines: print lines where the stream is not a terminal.
    """

    def __init__(
        self, stream: TextIO | None = None, *, interval_s: float = 15.0, delay_s: float = 0.0, lines: bool = True
    ) -> None:
        self._stream = MessageStream(stream if stream is not None else sys.stderr)
        self._interval_s, self._delay_s, self._lines = interval_s, delay_s, lines
        self._stage = ""
        self._last_line_s = 0.0
        self._began = (0.0, 0)  # when the stage began, and how much was done then
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Progress`."""
        if self._stream.isatty():
            self._draw(stage, done, total)
        elif self._lines:
            self._write(stage, done, total)

    def close(self) -> None:
        """End a bar that is still open, so that what is printed next starts on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or stage != self._stage:
            from tqdm import tqdm

            self.close()
            self._stage = stage
            # Units differ by stage (bytes, weights), so none is named.
            # What was done before does not count for the time left.
            scale = total > 1 << 20
            columns, lines = _size(self._stream)
            self._bar = tqdm(
                total=total, initial=done, desc=stage, file=self._stream, unit="", unit_scale=scale,
                delay=self._delay_s, leave=not self._delay_s, ncols=columns, nrows=lines,
            )  # fmt: skip
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def _write(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._last_line_s, self._began = stage, now, (now, done)
            print(f"{stage} …", file=self._stream, flush=True)
        elif done < total and now - self._last_line_s >= self._interval_s:
            self._last_line_s = now
            began_s, before = self._began
            left = (
                f", {readable_time((now - began_s) * (total - done) / (done - before))} left" if done > before else ""
            )
            print(f"{stage}: {done / total:.0%}{left}", file=self._stream, flush=True)


def _size(stream: MessageStream) -> tuple[int, int]:
    """Columns and lines of a terminal. Some say that they have none; a bar would never show there."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except unless_signalled(OSError, ValueError):
        columns, lines = _UNKNOWN
    return columns or _UNKNOWN[0], lines or _UNKNOWN[1]


def readable_time(seconds: float) -> str:
    """A length of time in two figures or so: "8 s", "3 min", "1 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
