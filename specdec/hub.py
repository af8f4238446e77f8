"""Fetches what a model on a hub is read from, and nothing else of its repository: `fetch`.

Files are in the cache folder, in a folder for their commit. A download that was cut short continues. Files
that the hub's own client has in its cache are used where they lie.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from specdec import paths
from specdec.download import CHUNK_BYTES, check_room
from specdec.errors import DownloadError, SpecdecError, StoreError
from specdec.hub_name import HubName, wanted_files
from specdec.interrupts import is_from_signal_handler, unless_signalled
from specdec.model_files import INDEX_NAME
from specdec.progress import Progress
from specdec.read_file import MOST_TEXT_BYTES, read_regular

TIMEOUT_S = 10.0
PARTIAL = ".partial"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a repository: its path in it, its bytes, and its sha256 where the hub tells it."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model of a hub, on this machine.

    Attributes:
        path: the folder, or the first `.gguf` file.
        revision: commit that it is of.
    """

    path: Path
    revision: str


def folder_of(repo: str) -> Path:
    """Folder of a repository's files in the cache, whether or not it exists."""
    return paths.home() / "hub" / repo.replace("/", "--")


def fetch(name: HubName, *, progress: Progress) -> Fetched:
    """Put the files of a model on this machine; what is there of its commit already is kept.

    Args:
        name: of the model; a branch or tag is resolved to the commit that it is now.
        progress: reports the bytes that have arrived.

    Raises:
        DownloadError: there is no such model, it may not be read, or the hub cannot be reached.
        ModelFormatError: the repository's index of weights cannot be read.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DownloadError(
            f"fetching {name} needs huggingface_hub: pip install 'specdec-mlx[hub]', or give a folder or .gguf file"
        )
    with _explained(name):
        try:
            commit, files = _look_up(name)
        except Exception as error:  # of the HTTP library, when nothing answers
            if isinstance(error, SpecdecError) or is_from_signal_handler(error) or hasattr(error, "response"):
                raise
            if (found := _from_client_cache(name)) is None:
                raise
            return found
        folder = folder_of(name.repo) / commit
        paths.private_folder(folder)

        def read_index() -> bytes:
            with _explained(name):
                return read_regular(_fetched(name, commit, files[INDEX_NAME], folder), most_bytes=MOST_TEXT_BYTES)

        wanted = [files[one] for one in wanted_files(name, files.keys(), read_index)]
        _fetch_all(name, commit, wanted, folder, progress)
    _drop_others(folder)
    is_gguf = wanted[0].name.lower().endswith(".gguf")
    return Fetched(folder / wanted[0].name if is_gguf else folder, commit)


def _look_up(name: HubName) -> tuple[str, dict[str, _File]]:
    """The commit that a name is now, and the files that it has."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=_endpoint()).model_info(
        name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT_S
    )
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise DownloadError(f"the hub named no commit for {name}")
    files = {}
    for one in info.siblings or ():
        path = Path(one.rfilename)
        if path.is_absolute() or ".." in path.parts:
            continue  # a name that would leave the folder is not one of a model
        sha256 = None if one.lfs is None else one.lfs.sha256
        files[one.rfilename] = _File(one.rfilename, -1 if one.size is None else one.size, sha256)
    return commit, files


def _from_client_cache(name: HubName) -> Fetched | None:
    """The model in the cache of the hub's own client, for when there is no network; None where it is not whole."""
    from huggingface_hub import constants

    repo = Path(_client_cache() or constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"
    revision = name.revision or "main"
    ref = repo / "refs" / revision
    commit = ref.read_text(encoding="ascii").strip() if ref.is_file() else revision
    folder = repo / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    try:
        wanted = wanted_files(name, names, lambda: read_regular(folder / INDEX_NAME, most_bytes=MOST_TEXT_BYTES))
    except SpecdecError:
        return None
    return Fetched(folder / wanted[0] if wanted[0].lower().endswith(".gguf") else folder, commit)


def _fetch_all(name: HubName, commit: str, files: list[_File], folder: Path, progress: Progress) -> None:
    missing = [one for one in files if not (folder / one.name).exists()]
    total = sum(max(0, one.size) for one in missing) or 1
    check_room(folder, sum(max(0, one.size) for one in missing) - _partial_bytes(folder, missing))
    stage, done = f"fetching {name.repo}", 0
    for one in missing:
        _fetched(name, commit, one, folder, functools.partial(_tell, progress, stage, total, done))
        done += max(0, one.size)
    if missing:
        progress(stage, total, total)


def _tell(progress: Progress, stage: str, total: int, before: int, size: int) -> None:
    progress(stage, min(before + size, total), total)


def _fetched(
    name: HubName, commit: str, file: _File, folder: Path, arrived: Callable[[int], None] = lambda _: None
) -> Path:
    """A file of the repository, in place. What has arrived of it by an error continues from there the next time."""
    import huggingface_hub

    target = folder / file.name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    cached = huggingface_hub.try_to_load_from_cache(name.repo, file.name, cache_dir=_client_cache(), revision=commit)
    if isinstance(cached, str):
        target.symlink_to(Path(cached).resolve())
        return target
    partial = target.with_name(target.name + PARTIAL)
    url = huggingface_hub.hf_hub_url(name.repo, file.name, revision=commit, endpoint=_endpoint())
    with partial.open("ab") as out:
        _receive(url, out, file.size, arrived)
        out.flush()
        os.fsync(out.fileno())
    if file.sha256 is not None and _sha256(partial) != file.sha256:
        partial.unlink()
        raise DownloadError(f"{file.name} of {name.repo} came with another checksum than the hub names: try again")
    partial.replace(target)
    return target


def _receive(url: str, out: BinaryIO, size: int, arrived: Callable[[int], None]) -> None:
    """Append to `out`, which holds the file's beginning, what is missing of it. A connection that breaks is made again
    as long as anything comes.

    Args:
        url: of the file.
        out: opened for appending.
        size: bytes of the file, or -1 where that is not known.
        arrived: called with the number of bytes that are there.

    Raises:
        Exception: of the hub's client or its HTTP library.
    """
    client: Any = importlib.import_module("huggingface_hub.utils")
    if 0 <= size < out.seek(0, os.SEEK_END):
        out.truncate(0)
    while (start := out.seek(0, os.SEEK_END)) != size:
        headers = (
            client.build_hf_headers()
            | {"Accept-Encoding": "identity"}
            | ({"Range": f"bytes={start}-"} if start else {})
        )
        try:
            with client.get_session().stream(
                "GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
            ) as response:
                client.hf_raise_for_status(response)
                if start and response.status_code != 206:
                    out.truncate(0)  # the whole file comes
                for block in response.iter_bytes():
                    out.write(block)
                    arrived(out.tell())
        except Exception as error:
            if is_from_signal_handler(error) or hasattr(error, "response") or out.seek(0, os.SEEK_END) <= start:
                raise
            continue
        if size < 0 or out.tell() <= start:
            break
    if size >= 0 and out.tell() != size:
        raise DownloadError(f"{url} has {out.tell()} bytes, and the hub says {size}: try again")


@contextlib.contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Errors of the hub's client, as one sentence that says what to do.

    Raises:
        DownloadError: for any of them.
    """
    try:
        yield
    except SpecdecError:
        raise
    except unless_signalled(Exception) as error:  # those of whichever HTTP library the client uses share no base
        raise _sentence(name, error) from None


def _sentence(name: HubName, error: Exception) -> SpecdecError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    where = f"{_endpoint() or 'https://huggingface.co'}/{name.repo}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(f"{name.repo} is gated: ask for access at {where}, then {log_in}")
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{name.repo} has no revision {name.revision!r}: see {where}")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        known = "and no folder here has that name" if status == 404 else f"or it is private: for that, {log_in}"
        return DownloadError(f"the hub has no model {name.repo}, {known}")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, OSError):
        return DownloadError(f"a file of {name.repo} is not there any more: try again")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(f"{name} has to be fetched, and HF_HUB_OFFLINE forbids it: unset it, or give a folder")
    if status is not None:
        return DownloadError(f"the hub answered {status} for {name}: try again later")
    if isinstance(error, errors.HFValidationError):
        return DownloadError(f"{name.repo!r} cannot be the name of a model on a hub")
    if isinstance(error, OSError) and error.errno is not None and error.strerror and error.filename:
        return StoreError(f"cannot write {error.filename}: {error.strerror}")
    return DownloadError(
        f"the connection to the hub failed while fetching {name} ({type(error).__name__}): connect to the network and "
        "give the same command, which continues from here, or give a folder or .gguf file"
    )


def _endpoint() -> str | None:
    """The hub of the environment, also where it was set after the client was imported.

    Raises:
        DownloadError: it is not an address.
    """
    named = os.environ.get("HF_ENDPOINT") or None
    if named is not None and not named.startswith(("http://", "https://")):
        raise DownloadError(f"HF_ENDPOINT must begin with http:// or https://, not {named!r}")
    return named


def _client_cache() -> str | None:
    """The cache of the hub's own client, likewise."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return chosen
    home = os.environ.get("HF_HOME")
    return str(paths.named(home) / "hub") if home else None


def _drop_others(folder: Path) -> None:
    """Remove the files of other commits of the same repository: a store needs them no more."""
    for other in folder.parent.iterdir():
        if other != folder and _COMMIT.fullmatch(other.name):
            shutil.rmtree(other, ignore_errors=True)


def _partial_bytes(folder: Path, files: list[_File]) -> int:
    total = 0
    for one in files:
        with contextlib.suppress(OSError):
            total += (folder / (one.name + PARTIAL)).stat().st_size
    return total


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()
