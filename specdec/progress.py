"""How long work is reported: the `Progress` protocol, and a printer for a terminal or a log. No work is done here."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

from tqdm import tqdm


class Progress(Protocol):
    """Called as work goes on; the first call of a stage announces it, the call with `done == total` ends it."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units (bytes for a download, weights for a conversion) of `stage` are done."""
        ...


class StreamProgress:
    """Prints progress to a text stream: a bar when it is a terminal, else a line at the start of a stage and one every
    `interval_s` seconds. Both tell how much time is left, going by what the stage has taken so far."""

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 15.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s
        self._stage = ""
        self._last_line_s = 0.0
        self._began = (0.0, 0)  # when the stage began, and how much was done then
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Progress`."""
        if self._stream.isatty():
            self._draw(stage, done, total)
        else:
            self._write(stage, done, total)

    def close(self) -> None:
        """End a bar that is still open, so that what is printed next starts on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or stage != self._stage:
            self.close()
            self._stage = stage
            # Units differ by stage (bytes, weights), so none is named.
            # What was done before does not count for the time left.
            scale = total > 1 << 20
            self._bar = tqdm(total=total, initial=done, desc=stage, file=self._stream, unit="", unit_scale=scale)
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


def readable_time(seconds: float) -> str:
    """A length of time in two figures or so: "8 s", "3 min", "1 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
