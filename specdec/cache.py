"""Contents of the cache folder: which store came from which model, what is unused, and how entries are removed.

A store that was converted into the cache holds `origin.json`, which names its model. A model has one store for each
catalogue name or path: when its files change, the store made from them takes the place of the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specdec import paths
from specdec.errors import InvalidArgumentError, SpecdecError, StoreError
from specdec.hub_name import parse_hub_name
from specdec.interrupts import unless_signalled
from specdec.lock_file import open_lock
from specdec.parse import parse_json
from specdec.read_file import open_regular
from specdec.store.description import DESCRIPTION_FILE
from specdec.store.staging import MARKER, clear_unfinished, writing
from specdec.whole_file import whole_file

ORIGIN_FILE = "origin.json"
_MOST_ORIGIN_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file or folder of the cache.

    Attributes:
        name: what `specdec rm` calls it.
        kind: "store", "file" (a fetched model file), "unfinished" (a download or conversion that was cut short), or
            "measurements" (costs, and results of benchmarks and evaluations).
        path: where it lies.
        size_bytes: bytes on the disk.
        source: what it was made from: a catalogue name or the path of a model; None where that is unknown.
        orphan: its model is not there any more, or it was made for an older version of that model.
    """

    name: str
    kind: str
    path: str
    size_bytes: int
    source: str | None
    orphan: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def write_origin(store: Path, source: str) -> None:
    """Note in a store of the cache what it was made from: a catalogue name, or the absolute path of a model.

    Raises:
        StoreError: the file cannot be written.
    """
    with writing(store), whole_file(store / ORIGIN_FILE) as unfinished:
        unfinished.write_text(json.dumps({"source": source}) + "\n", encoding="utf-8")


def read_origin(store: Path) -> str | None:
    """What a store was made from, or None where it does not say."""
    try:
        with open_regular(store / ORIGIN_FILE) as file:
            source = parse_json(file.read(_MOST_ORIGIN_BYTES))["source"]
    except unless_signalled(OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return source if isinstance(source, str) else None


def replace_older(store: Path, source: str) -> None:
    """Remove the other stores that were made from `source`, what killed conversions left, and stores whose model was
    removed. A store is left alone where the disk of its model may only be away: where the model's folder is gone too.
    """
    key = store.name.rpartition("-")[2]
    for folder in _folders(store.parent):
        origin = read_origin(folder)
        if origin is None or folder.name.endswith(f"-{key}"):  # it, or made at the same time under another name
            continue
        if origin == source or _is_gone(Path(origin)):
            with contextlib.suppress(SpecdecError):  # what cannot be removed now is an orphan of the list
                _remove_store(folder)
    clear_unfinished(store.parent)


def list_entries(catalogued: Iterable[tuple[str, Path, str]]) -> list[Entry]:
    """Everything in the cache folder.

    Args:
        catalogued: for each model of the catalogue its name, where its store lies once it is pulled, and the name of
            its model file.
    """
    known = list(catalogued)
    stores = {path: name for name, path, _ in known}
    found = [_store_entry(folder, stores.get(folder)) for folder in _folders(paths.home() / "stores")]
    found += _file_entries({file for _, _, file in known})
    found += _hub_entries()
    for kind in ("bench", "eval", "costs", "kernels"):
        folder = paths.home() / kind
        if folder.is_dir() and (size := size_of(folder)):
            found.append(_entry(kind, "measurements", folder, size, None, orphan=False))
    return found


def find_entries(entries: Iterable[Entry], named: str) -> list[Entry]:
    """What one word of `specdec rm` means: an entry's name, its path, or everything that was made from a model.

    Raises:
        InvalidArgumentError: there is nothing of that name.
    """
    entries = list(entries)
    path = os.path.realpath(paths.named(named))
    found = [one for one in entries if named in (one.name, one.source) or path in (one.source, one.path)]
    if not found:
        names = ", ".join(one.name for one in entries) or "(the cache is empty)"
        raise InvalidArgumentError(f"the cache holds nothing named {named!r}: it holds {names}")
    return found


def remove(entry: Entry) -> None:
    """Remove an entry from the disk.

    Raises:
        StoreError: it cannot be removed.
        InvalidArgumentError: another process prepares it.
    """
    path = Path(entry.path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StoreError(f"cannot remove {path}: {path.parent} is read-only, or its permissions refuse")
    if entry.kind == "store":
        _remove_store(path)
        return
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_gone(model: Path) -> bool:
    return model.is_absolute() and not model.exists() and model.parent.is_dir()


def _store_entry(folder: Path, name: str | None) -> Entry:
    unfinished = folder.name.startswith(".")
    source = name or read_origin(folder)
    known = source is not None and (name is not None or Path(source).exists() or parse_hub_name(source) is not None)
    kind = "unfinished" if unfinished else "store"
    return _entry(name or folder.name, kind, folder, size_of(folder), source, orphan=unfinished or not known)


def _file_entries(known: set[str]) -> Iterator[Entry]:
    folder = paths.home() / "models"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        source = next((name for name in known if path.name.lstrip(".").startswith(f"{name}.gguf")), None)
        kind = "file" if path.suffix == ".gguf" and not path.name.startswith(".") else "unfinished"
        yield _entry(path.name, kind, path, size_of(path), source, orphan=source is None)


def _hub_entries() -> Iterator[Entry]:
    """Files of models of a hub, one entry for each repository."""
    folder = paths.home() / "hub"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        repo = path.name.replace("--", "/", 1)
        kind = "unfinished" if any(path.rglob("*.partial")) else "file"
        yield _entry(repo, kind, path, size_of(path), repo, orphan=False)


def _entry(name: str, kind: str, path: Path, size: int, source: str | None, *, orphan: bool) -> Entry:
    return Entry(name=name, kind=kind, path=str(path), size_bytes=size, source=source, orphan=orphan)


def _folders(stores: Path) -> list[Path]:
    """Stores, finished or not, in the folder of stores."""
    if not stores.is_dir():
        return []
    folders = [path for path in sorted(stores.iterdir()) if path.is_dir() and not path.is_symlink()]
    return [path for path in folders if (path / DESCRIPTION_FILE).is_file() or path.name.startswith(".")]


def _remove_store(folder: Path) -> None:
    """Remove a store. First it gets another name, so that nothing takes the remains of a removal that was cut short
    for a store.

    Raises:
        StoreError: it cannot be removed.
        InvalidArgumentError: another process prepares it.
    """
    with writing(folder):
        lock = open_lock(paths.locks_folder() / f"{folder.name}.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = folder
            (folder / MARKER).touch()
            if not folder.name.startswith("."):
                gone = folder.with_name(f".{folder.name}.partial")
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
            shutil.rmtree(gone)
        except BlockingIOError:
            raise InvalidArgumentError(f"{folder} is in use: another specdec is preparing it") from None
        finally:
            os.close(lock)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a folder; what goes away meanwhile counts nothing."""
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names) if path.is_dir() else (path,)
    total = 0
    for one in files:
        with contextlib.suppress(OSError):
            total += one.lstat().st_size
    return total
