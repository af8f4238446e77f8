"""Writing files that a user or a cache asked for: whole files by rename; devices, FIFOs and descriptors in place."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from specdec.interrupts import unless_signalled

_MOST_LINKS = 40
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/(?:self|thread-self|\d+(?:/task/\d+)?)/fd)/(\d+)")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends. If it fails, `path` stays as it was.

    A link is followed: the file that it names is replaced, and the link stays. The new file keeps the permissions of
    the one that it replaces.

    Raises:
        OSError: the file cannot be written or put in its place; it names `path` where it named no file.
    """
    target = Path(os.path.realpath(path))
    unfinished = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}")
    try:  # a signal handler may raise at any point
        handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(handle, _permissions(target))
        finally:
            os.close(handle)
        yield unfinished
        unfinished.replace(target)
    except unless_signalled(OSError) as error:
        if error.errno is not None and error.filename is None:  # a write that finds the disk full knows no name
            error.filename = os.fspath(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write_output(path: str | Path, data: bytes) -> None:
    """Write what a user asked for. A regular file appears whole or not at all; anything else is written in place.

    Args:
        path: the file. Links are followed. A device, a FIFO, or a descriptor of this process (`/dev/stdout`,
            `/dev/fd/3`) gets the bytes and stays what it is.
        data: all of the content.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    if is_replaceable(path):
        with whole_file(path) as unfinished:
            unfinished.write_bytes(data)
        return
    with open_output(path) as file:
        file.write(data)


def open_output(path: str | Path) -> BinaryIO:
    """Open a file for output that grows, from its start; a descriptor of this process goes on where it is.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = _descriptor(Path(path))
    return Path(path).open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")


def is_replaceable(path: Path) -> bool:
    """Whether a rename may put a new file at `path`: a regular file or nothing is there, in a folder that can be
    written. A file in a folder that cannot be written is written in place."""
    if _descriptor(path) is not None:
        return False
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        return os.access(Path(os.path.realpath(path)).parent, os.W_OK | os.X_OK)
    return True


def _permissions(target: Path) -> int:
    """The mode of the file that is replaced, or the one that a new file gets."""
    with suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path stands for, through any links; None for another file."""
    own = {"self", "thread-self", str(os.getpid())}
    for _ in range(_MOST_LINKS):
        path = Path(os.path.abspath(path))  # noqa: PTH100  # links are followed here, one at a time
        if (found := _DESCRIPTOR.fullmatch(str(path))) and (path.parts[1] == "dev" or path.parts[2] in own):
            return int(found[1])
        try:
            link = path.readlink()
        except unless_signalled(OSError):
            return None
        path = path.parent / link
    return None
