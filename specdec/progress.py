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
    `interval_s` seconds."""

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 15.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s
        self._stage = ""
        self._last_line_s = 0.0
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
            self._bar = tqdm(total=total, desc=stage, file=self._stream, unit="", unit_scale=total > 1 << 20)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def _write(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._last_line_s = stage, now
            print(f"{stage} …", file=self._stream, flush=True)
        elif done < total and now - self._last_line_s >= self._interval_s:
            self._last_line_s = now
            print(f"{stage}: {done / total:.0%}", file=self._stream, flush=True)
