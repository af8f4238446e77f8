"""Opening and reading files of others: regular files only where a model is read, and never without a bound."""

from __future__ import annotations

import errno
import io
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

MOST_TEXT_BYTES = 64 << 20  # the largest tokenizer.json has half of it


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading. Links are followed; nothing waits for the writer of a FIFO.

    Raises:
        OSError: it cannot be opened, or is a device, a FIFO, a socket or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | Path, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """All of a file that a user named: regular, a FIFO or a device.

    Raises:
        OSError: it cannot be read, or holds more than `most_bytes`.
    """
    with Path(path).open("rb") as file:
        return read_bounded(file, most_bytes)


def read_text(path: str | Path) -> str:
    """The UTF-8 text of a file that a user named, with every end of a line as one newline.

    Raises:
        OSError: it cannot be read, or is larger than 64 MiB.
        UnicodeDecodeError: it is not UTF-8.
    """
    return io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8").read()


def read_regular(path: str | Path, *, most_bytes: int) -> bytes:
    """All of a regular file.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than `most_bytes`.
    """
    with open_regular(path) as file:
        return read_bounded(file, most_bytes)


def read_bounded(file: BinaryIO, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """What an open file or stream holds.

    Raises:
        OSError: it cannot be read, or holds more than `most_bytes`.
    """
    content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes / 1e6:.0f} MB")
    return content
