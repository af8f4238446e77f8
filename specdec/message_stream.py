"""Text streams for messages that may be lost: `MessageStream` and `StandardStream`. Writing to them never fails."""

from __future__ import annotations

import contextlib
import os
from typing import Any, TextIO

from specdec.interrupts import unless_signalled


class MessageStream:
    """A stream whose failures are ignored: it is closed, full, or its reader went away. After one it is
    silent.

    Args:
        stream: the stream; None where it is closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except unless_signalled(OSError, ValueError):
                self._lose(self._stream)
        return len(text)

    def flush(self) -> None:
        """Flush what was not lost."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except unless_signalled(OSError, ValueError):
                self._lose(self._stream)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except unless_signalled(OSError, ValueError):
            return False

    def fileno(self) -> int:
        """Descriptor of the stream.

        Raises:
            OSError: there is none.
        """
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, stream: TextIO) -> None:  # noqa: ARG002  # subclasses do more
        self._stream = None


class StandardStream(MessageStream):
    """Standard output or error, where it is for messages only."""

    def _lose(self, stream: TextIO) -> None:
        # What the stream still holds would fail again when the interpreter ends, which then ends with code 120.
        drop(stream)
        super()._lose(stream)


def drop(*streams: TextIO | None) -> None:
    """Point streams at nothing, so that what they still hold does not meet the closed pipe or the full disk."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nothing, stream.fileno())  # type: ignore[union-attr]
    os.close(nothing)
