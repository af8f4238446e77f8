"""A conversion appears whole or not at all: killed, out of space, twice at once, or over something else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from places import HELPERS
from synthetic import SyntheticSource, synthetic_source, tiny_config

from specdec.errors import StoreError
from specdec.store import Store, convert
from specdec.store import staging as staging_module

# Converts to argv[1]; stops for good before the matrix argv[2], after saying so.
STUCK = """
import sys, time
from synthetic import SyntheticSource, tiny_config
from specdec.store import convert

class Stuck(SyntheticSource):
    def matrix(self, name):
        if name == sys.argv[2]:
            print("stuck", flush=True)
            time.sleep(600)
        return super().matrix(name)

convert(Stuck(tiny_config()), sys.argv[1], views=["int4"], overwrite=True)
"""


def run(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(HELPERS)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stuck_conversion(target: Path, matrix: str) -> subprocess.Popen[str]:
    """A process in the middle of a conversion to `target`."""
    process = run(STUCK, target, matrix)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("matrix", ["layers.0.attn.q", "layers.1.mlp.down", "head"])
def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path, matrix: str) -> None:
    target = tmp_path / "store"
    process = stuck_conversion(target, matrix)
    process.kill()
    process.communicate()
    assert not target.exists()
    left = names(tmp_path)
    assert left
    assert all(name.startswith(".store.") for name in left)
    for name in left:
        with pytest.raises(StoreError):
            Store.open(tmp_path / name)
    source = synthetic_source()
    assert Store.open(convert(source, target)).config == source.config
    assert names(tmp_path) == ["store"]


def test_a_killed_conversion_leaves_the_old_store_alone(tmp_path: Path) -> None:
    target = tmp_path / "store"
    old = Store.open(convert(synthetic_source(seed=5), target)).checksum
    process = stuck_conversion(target, "head")
    assert Store.open(target).checksum == old
    process.kill()
    process.communicate()
    assert Store.open(target).checksum == old
    new = Store.open(convert(synthetic_source(seed=6), target, overwrite=True)).checksum
    assert new != old
    assert names(tmp_path) == ["store"]


def test_two_conversions_at_once_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "store"
    process = stuck_conversion(target, "head")
    with pytest.raises(StoreError, match=f"another conversion to .* is running .process {process.pid}."):
        convert(synthetic_source(), target)
    process.kill()
    process.communicate()
    Store.open(convert(synthetic_source(), target))


def test_many_conversions_at_once_leave_one_whole_store(tmp_path: Path) -> None:
    outcomes: list[str] = []

    def work(seed: int) -> None:
        try:
            convert(synthetic_source(seed=seed), tmp_path / "store", threads=1)
            outcomes.append("done")
        except StoreError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("done") == 1
    assert all("is running" in text or "is a store already" in text for text in outcomes if text != "done")
    Store.open(tmp_path / "store")
    assert names(tmp_path) == ["store"]


def test_interrupted_by_the_user(tmp_path: Path) -> None:
    process = stuck_conversion(tmp_path / "store", "head")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert names(tmp_path) == []


@pytest.mark.parametrize("allowed", [0, 1, 20, 100])
def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    count, real = 0, os.pwrite

    def full(*arguments: object) -> int:
        nonlocal count
        count += 1
        if count > allowed + 1:  # the first one writes the lock's process id
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="no space left to write") as caught:
        convert(synthetic_source(), tmp_path / "store", views=["int4"])
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:1000], offset))
    Store.open(convert(synthetic_source(), tmp_path / "store"))


def test_a_file_size_limit_of_the_system(tmp_path: Path) -> None:
    script = """
import resource, sys
from synthetic import synthetic_source
from specdec.errors import StoreError
from specdec.store import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    convert(synthetic_source(), sys.argv[1])
except StoreError as error:
    print(error)
"""
    output, errors = run(script, tmp_path / "store").communicate(timeout=60)
    assert output.startswith("no space left to write"), errors
    assert names(tmp_path) == []


def test_too_little_space_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = synthetic_source()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StoreError, match=r"no space left for .*: it needs 0.1 MB and 0.0 MB are free"):
        convert(source, tmp_path / "store")
    assert source.reads == []
    assert names(tmp_path) == []


def test_only_a_store_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    source = synthetic_source()
    for name in ("file", "folder"):
        for overwrite in (False, True):
            with pytest.raises(StoreError, match="exists and is not a store"):
                convert(source, tmp_path / name, overwrite=overwrite)
    assert source.reads == []
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "mine"
    Store.open(convert(source, tmp_path / "empty"))
    with pytest.raises(StoreError, match="is a store already"):
        convert(source, tmp_path / "empty")
    assert names(tmp_path) == ["empty", "file", "folder"]


def test_a_damaged_store_may_be_replaced(tmp_path: Path) -> None:
    target = convert(synthetic_source(), tmp_path / "store")
    (target / "exact.safetensors").unlink()
    Store.open(convert(synthetic_source(), target, overwrite=True))


def test_an_open_store_survives_its_replacement(tmp_path: Path) -> None:
    old = Store.open(convert(synthetic_source(seed=1), tmp_path / "store"))
    convert(synthetic_source(seed=2), tmp_path / "store", overwrite=True)
    assert (old.exact("head").dense_bits() == synthetic_source(seed=1).matrix("head")).all()
    new = Store.open(tmp_path / "store")
    assert (new.exact("head").dense_bits() == synthetic_source(seed=2).matrix("head")).all()


def test_a_folder_of_somebody_else_in_the_way_is_not_removed(tmp_path: Path) -> None:
    other = tmp_path / ".store.partial"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists and was not created by specdec"):
        convert(synthetic_source(), tmp_path / "store")
    assert names(other) == ["thesis.txt"]
    assert names(tmp_path) == [".store.partial"]


def test_killed_between_the_two_renames_of_a_replacement(tmp_path: Path) -> None:
    old = Store.open(convert(synthetic_source(seed=1), tmp_path / ".store.replaced")).checksum
    convert(synthetic_source(seed=2), tmp_path / ".store.partial")
    with pytest.raises(StoreError, match="is a store already"):
        convert(synthetic_source(seed=3), tmp_path / "store")
    assert Store.open(tmp_path / "store").checksum == old
    assert names(tmp_path) == ["store"]


def test_a_failed_replacement_puts_the_old_store_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "store"
    old = Store.open(convert(synthetic_source(seed=1), target)).checksum
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self.name == ".store.partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StoreError, match=f"cannot write {target}"):
        convert(synthetic_source(seed=2), target, overwrite=True)
    assert Store.open(target).checksum == old
    assert names(tmp_path) == ["store"]


def test_a_link_to_a_store_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "store")
    target = convert(synthetic_source(), tmp_path / "link")
    assert target == (tmp_path / "disk" / "store").resolve()
    Store.open(tmp_path / "link")
    Store.open(convert(synthetic_source(), tmp_path / "link", overwrite=True))
    assert names(tmp_path / "disk") == ["store"]


def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Broken(SyntheticSource):
        def matrix(self, name: str) -> object:  # type: ignore[override]
            if name == "layers.1.attn.o":
                raise RuntimeError("the cable came out")
            return super().matrix(name)

    with pytest.raises(RuntimeError, match="the cable came out"):
        convert(Broken(tiny_config()), tmp_path / "store")
    assert names(tmp_path) == []


def test_a_handler_that_raises_as_the_lock_was_taken_leaves_no_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = staging_module._lock, []

    def interrupted(fd: int, path: Path, target: Path) -> None:
        real(fd, path, target)
        calls.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging_module, "_lock", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(synthetic_source(), tmp_path / "store")
    assert len(calls) == 1
    assert names(tmp_path) == []
    Store.open(convert(synthetic_source(), tmp_path / "store"))


def test_a_lock_that_its_holder_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = staging_module._is_at, []

    def removed_once(fd: int, path: Path) -> bool:
        if not calls:
            path.unlink()
        calls.append(path)
        return real(fd, path)

    monkeypatch.setattr(staging_module, "_is_at", removed_once)
    Store.open(convert(synthetic_source(), tmp_path / "store"))
    assert len(calls) == 2
    assert names(tmp_path) == ["store"]
