"""Standard streams that are closed, full, or speak another encoding: `prepared`, around a whole command."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from specdec.message_stream import StandardStream

_STANDARD = (0, 1, 2)


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Meanwhile standard output and error speak UTF-8, and messages that cannot be written do no harm.

    Standard error is for messages: where it is closed or full they are lost, and the command goes on. A descriptor of a
    standard stream that was closed is taken by the null device, so that no file of specdec gets its number, and with it
    what a library in C may have to say.
    """
    _occupy()
    _speak_utf8(sys.stdout, sys.stderr)
    with contextlib.redirect_stderr(StandardStream(sys.stderr)):  # type: ignore[type-var]
        yield


def _occupy() -> None:
    """Open the null device in place of standard streams that are closed."""
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one, since those before it are taken.
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)


def _speak_utf8(*streams: TextIO | None) -> None:
    """Write UTF-8 whatever the locale says: a model's text knows no other encoding."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")
