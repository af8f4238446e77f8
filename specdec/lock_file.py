"""Opening lock files without following links: a lock may be in a folder that others can write."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_lock(path: Path) -> int:
    """A descriptor of a lock file, created when missing, open for reading and writing.

    Args:
        path: a regular file with one name, or nothing. A link, a device, a FIFO or a file with a second name, which
            could be another program's file, is refused and stays as it is.

    Raises:
        OSError: the file cannot be opened, or is not such a file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(error.errno, "the lock file is a link: remove it", str(path)) from None
        raise
    found = os.fstat(descriptor)
    # A holder may have removed the file a moment ago: then it has no name left, and the caller opens it again.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "the lock file is not a regular file of its own: remove it", str(path))
    return descriptor
