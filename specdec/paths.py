"""Where specdec keeps what it downloads and converts. Reading and writing those files lives elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from specdec.errors import InvalidArgumentError

HOME_VARIABLE = "SPECDEC_HOME"


def home() -> Path:
    """The cache folder: `$SPECDEC_HOME`, or the platform's cache folder for specdec. It need not exist yet."""
    chosen = os.environ.get(HOME_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_path("specdec"))


def models_folder() -> Path:
    """Folder of downloaded model files, created when missing."""
    return _ready(home() / "models")


def stores_folder() -> Path:
    """Folder of converted stores, created when missing."""
    return _ready(home() / "stores")


def locks_folder() -> Path:
    """Folder of the lock files that keep two processes from fetching or converting the same model at once."""
    return _ready(home() / "locks")


def _ready(folder: Path) -> Path:
    """`folder`, created and known to be writable.

    Raises:
        InvalidArgumentError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot create the cache folder {folder} ({error.strerror}): set {HOME_VARIABLE} to a folder you can write"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidArgumentError(
            f"the cache folder {folder} is not writable: set {HOME_VARIABLE} to a folder you can write"
        )
    return folder
