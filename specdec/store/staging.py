"""Writing a folder so that it appears whole or not at all: lock, sibling, rename. What is in it: `conversion`.

For a target `NAME` the siblings are `.NAME.lock` (held with flock while a conversion runs: the system lets go of it
when the process dies, however it dies), `.NAME.partial` (the unfinished folder, marked as such by a file inside) and,
for a moment while an old store is replaced, `.NAME.replaced`. Whoever holds the lock may clear what an earlier,
killed conversion left; a folder that does not carry our mark is never removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specdec.errors import StoreError
from specdec.interrupts import is_from_signal_handler, unless_signalled
from specdec.lock_file import open_lock
from specdec.store.description import is_store

MARKER = "UNFINISHED"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into one clear error.

    Raises:
        StoreError: the block raised an OSError.
    """
    try:
        yield
    except unless_signalled(OSError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(f"no space left to write {path}: free some, or choose another place") from error
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def staged_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends without an exception, and else disappears.

    Args:
        target: absolute path of the folder to make; its parent exists.
        overwrite: replace a store that is there.

    Raises:
        StoreError: `target` exists and may not be replaced, another conversion of it runs, or a write fails.
    """
    if not target.parent.is_dir():
        raise StoreError(f"cannot write {target}: the folder {target.parent} does not exist")
    partial, replaced = _sibling(target, "partial"), _sibling(target, "replaced")
    with _locked(target):
        _recover(target, partial, replaced)
        check_target(target, overwrite=overwrite)
        try:  # a signal handler may raise at any point
            with writing(target):
                partial.mkdir()
            with writing(partial):
                (partial / MARKER).write_text(
                    f"process {os.getpid()} has not finished writing this\n", encoding="utf-8"
                )
            yield partial
            with writing(target):
                _publish(target, partial, replaced, overwrite=overwrite)
        except BaseException:
            _remove(partial)
            with suppress(StoreError):  # an interrupt may have come when the old store had stepped aside
                _recover(target, partial, replaced)
            raise


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a place where a store must not be written.

    Raises:
        StoreError: it is a file, a folder with something other than a store in it, or a store and not `overwrite`.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not is_store(target):
        raise StoreError(f"{target} exists and is not a store: choose another place, or remove it yourself")
    if not overwrite:
        raise StoreError(f"{target} is a store already: choose another place, or ask to overwrite it")


def sync_folder(folder: Path) -> None:
    """Push the entries of a folder to the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}")


def _publish(target: Path, partial: Path, replaced: Path, *, overwrite: bool) -> None:
    """Give the finished folder its name; an old store steps aside first, and comes back if that fails."""
    (partial / MARKER).unlink()
    sync_folder(partial)
    old = overwrite and is_store(target)
    if old:
        target.rename(replaced)
    try:
        partial.rename(target)
    except BaseException:
        if old and not target.exists():  # a signal handler may have raised just after the renaming
            replaced.rename(target)
        raise
    sync_folder(target.parent)
    if old:
        _remove(replaced)


def _recover(target: Path, partial: Path, replaced: Path) -> None:
    """Clear up after a conversion that was killed. Only for the holder of the lock."""
    if is_store(replaced):
        if target.exists():
            _remove(replaced)
        else:
            replaced.rename(target)  # killed between the two renames: the old store is the only whole one
    if partial.exists():
        if not ((partial / MARKER).is_file() or is_store(partial) or _is_empty(partial)):
            raise StoreError(f"{partial} exists and was not created by specdec: remove it")
        with writing(partial):
            shutil.rmtree(partial)


def clear_unfinished(folder: Path) -> None:
    """Remove from `folder` what conversions left that were killed. One that still runs is left alone."""
    for leftover in [path for path in folder.iterdir() if path.suffix in (".partial", ".replaced")]:
        target = leftover.with_name(leftover.stem.removeprefix("."))
        if leftover != _sibling(target, leftover.suffix[1:]):
            continue
        with suppress(StoreError), _locked(target):
            _recover(target, _sibling(target, "partial"), _sibling(target, "replaced"))


def _remove(path: Path) -> None:
    """Remove a file or folder that specdec made, as far as possible. Signal handlers raise afterwards."""
    remove = shutil.rmtree if path.is_dir() else Path.unlink
    try:
        remove(path)
    except BaseException as error:
        with suppress(OSError):
            remove(path)
        if not isinstance(error, OSError) or is_from_signal_handler(error):
            raise


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, or refuse at once when another process holds it."""
    path, fd, is_held = _sibling(target, "lock"), -1, False
    try:
        while not is_held:
            with writing(target):
                fd = open_lock(path)
            _lock(fd, path, target)
            # Its holder may have removed it between our open and our lock.
            if not (is_held := _is_at(fd, path)):
                os.close(fd)
                fd = -1
        with writing(path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        try:
            if fd >= 0:
                _let_go(fd, path, is_held=is_held)
            else:
                _remove_unheld(path)
        except BaseException:  # a handler raised meanwhile
            _remove_unheld(path)
            raise


def _let_go(fd: int, path: Path, *, is_held: bool) -> None:
    """Close an open lock file, and remove it unless another process holds it."""
    try:
        # A handler may have raised just after the lock was taken. Whoever can take it may remove it.
        if is_held or (_can_lock(fd) and _is_at(fd, path)):
            _remove(path)
    finally:
        os.close(fd)


def _remove_unheld(path: Path) -> None:
    """Remove a lock file that no process holds: a signal handler may raise before its descriptor is known."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            _let_go(fd, path, is_held=False)
        else:
            os.close(fd)


def _lock(fd: int, path: Path, target: Path) -> None:
    """Take the lock of an open lock file.

    Raises:
        StoreError: another process holds it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except unless_signalled(OSError) as error:
        owner = os.read(fd, 64).decode(errors="replace").strip()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise StoreError(f"another conversion to {target} is running (process {owner or 'unknown'})") from None
        raise StoreError(f"cannot lock {path}: {error.strerror}") from error


def _can_lock(fd: int) -> bool:
    """Take the lock of an open lock file, or find that another process holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except unless_signalled(OSError):
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file `fd` is still the one named `path`."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
