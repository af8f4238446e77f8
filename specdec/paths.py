"""Where specdec keeps what it downloads and converts. Reading and writing those files lives elsewhere."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import platformdirs

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled

HOME_VARIABLE = "SPECDEC_HOME"


def home() -> Path:
    """The cache folder: `$SPECDEC_HOME`, or the platform's cache folder for specdec. It need not exist yet."""
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return named(chosen).absolute()
    return _of_platform(os.environ.get("HOME"), os.environ.get("XDG_CACHE_HOME"))


def named(path: str | Path) -> Path:
    """The path that a user wrote, with `~` and `~NAME` as home folders where there are such."""
    try:
        return Path(path).expanduser()
    except unless_signalled(RuntimeError):  # there is no such NAME
        return Path(path)


@lru_cache(maxsize=8)
def _of_platform(*_: str | None) -> Path:
    """The platform's cache folder, while the variables that it depends on stay the same: every answer asks."""
    return Path(platformdirs.user_cache_path("specdec"))


@lru_cache(maxsize=64, typed=True)
def name_of(*parts: object) -> str:
    """32 hexadecimal digits that name a file after everything that its content depends on; `parts` have hashes."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def models_folder() -> Path:
    """Folder of downloaded model files, created when missing."""
    return _ready(home() / "models")


def stores_folder() -> Path:
    """Folder of converted stores, created when missing."""
    return _ready(home() / "stores")


def locks_folder() -> Path:
    """Folder of the lock files that keep two processes from fetching or converting the same model at once."""
    return _ready(home() / "locks")


def private_folder(folder: Path) -> Path:
    """`folder`, created when missing. It, and every folder of the cache above it, is made for its owner only: what is
    asked of a model and what it answers may be in them. A folder that is there keeps its permissions.

    Raises:
        OSError: it cannot be created.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists() and (one == folder or _is_ours(one))]
    for one in reversed(missing):
        one.parent.mkdir(parents=True, exist_ok=True)
        one.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # fails where it is something other than a folder
    return folder


def _is_ours(folder: Path) -> bool:
    return folder == home() or home() in folder.parents


def _ready(folder: Path) -> Path:
    """`folder`, created and known to be writable.

    Raises:
        InvalidArgumentError: it cannot be created or written.
    """
    try:
        private_folder(folder)
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(
            f"cannot create the cache folder {folder} ({error.strerror}): set {HOME_VARIABLE} to a folder you can write"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidArgumentError(
            f"the cache folder {folder} is not writable: set {HOME_VARIABLE} to a folder you can write"
        )
    return folder
