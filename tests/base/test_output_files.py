"""Writing what was asked for: whole regular files, links followed, devices, FIFOs and descriptors in place."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import run, says

from specdec import paths
from specdec.errors import StoreError
from specdec.lock_file import open_lock
from specdec.store.staging import staged_folder
from specdec.whole_file import whole_file, write_output


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(b"before")
    path.chmod(0o640)
    with pytest.raises(RuntimeError), whole_file(path) as unfinished:  # noqa: PT012
        unfinished.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    write_output(path, b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["out.json"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, whole_file(tmp_path / "out.npz"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "out.npz")


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_output(tmp_path / "new", b"x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_and_stays(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "out.json", tmp_path / "link.json"
    if exists:
        target.write_bytes(b"before")
    link.symlink_to(target)
    write_output(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"


def test_a_fifo_stays_one(tmp_path: Path) -> None:
    path, got = tmp_path / "fifo", list[bytes]()
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write_output(path, b"through")
    reader.join(timeout=60)
    assert got == [b"through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_stays_one() -> None:
    before = Path("/dev/null").stat()
    write_output("/dev/null", b"gone")
    assert Path("/dev/null").stat().st_rdev == before.st_rdev
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("option", ["--json", "--trace"])
def test_a_full_device_is_told_and_stays(option: str, text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "a", "--max-tokens", "2", option, "/dev/full")
    assert ran.code == 2
    assert "No space left" in ran.err
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_descriptor_goes_on_where_it_is(tmp_path: Path) -> None:
    program = (
        "from specdec.whole_file import write_output\nimport sys\n"
        "print('before', flush=True)\nwrite_output('/dev/stdout', b'through\\n')\nprint('after')\n"
    )
    out = tmp_path / "out.txt"
    with out.open("wb") as file:
        subprocess.run([sys.executable, "-P", "-c", program], stdout=file, check=True)
    assert out.read_text() == "before\nthrough\nafter\n"


# --- locks and folders ------------------------------------------------------------------------------------------------


def test_no_lock_follows_a_link(tmp_path: Path, text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for lock in (tmp_path / "link", tmp_path / "hard"):
        lock.symlink_to(victim) if lock.name == "link" else lock.hardlink_to(victim)
        with pytest.raises(OSError, match="lock file"):
            open_lock(lock)
    (tmp_path / ".store.lock").symlink_to(victim)
    with pytest.raises(StoreError, match="lock file is a link"), staged_folder(tmp_path / "store", overwrite=False):
        pass
    assert victim.read_bytes() == b"precious"


def test_a_lock_that_is_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        open_lock(tmp_path / "fifo")


def test_a_dangling_lock_link_makes_no_file(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        open_lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


def test_the_cache_is_private(home: Path) -> None:
    for folder in (paths.stores_folder(), paths.locks_folder(), paths.private_folder(home / "bench" / "x")):
        while folder != home.parent:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
            folder = folder.parent


def test_a_folder_that_is_there_keeps_its_permissions(home: Path) -> None:
    home.mkdir(mode=0o755)
    paths.stores_folder()
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "stores").stat().st_mode) == 0o700


def test_a_folder_is_refused_as_an_output(tmp_path: Path, text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(
        run(capsys, "generate", "--model", text_model, "--prompt", "a", "--json", tmp_path), "is a folder: name a file"
    )
