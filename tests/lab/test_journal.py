"""The journal of measurements: whatever stops a run, whole lines are read back, and all else is refused or lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import InvalidArgumentError
from specdec.lab.journal import Journal, as_is

KIND, OF = "specdec test", {"model": "tiny", "numbers": (1, 2)}


def open_journal(path: Path, **options: Any) -> Journal[Any]:
    return Journal(path, KIND, options.pop("of", OF), decode=options.pop("decode", as_is), **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "results.jsonl"


@pytest.fixture
def content(path: Path) -> bytes:
    """A file of two results."""
    journal = open_journal(path, extra={"began": "today"})
    journal.add("a", [0.1, None])
    journal.add("b", {"deep": ["µ"]})
    journal.close()
    return path.read_bytes()


def test_results_are_read_back_in_order(path: Path, content: bytes) -> None:
    journal = open_journal(path, extra={"began": "later"}, strict=True)
    assert list(journal.results.items()) == [("a", [0.1, None]), ("b", {"deep": ["µ"]})]
    assert journal.header["began"] == "today"
    journal.add("c", (1, 2))
    journal.close()
    assert path.read_bytes().startswith(content)
    assert open_journal(path).results["c"] == journal.results["c"] == [1, 2]


@pytest.mark.parametrize("strict", [True, False])
def test_cut_at_any_byte_it_keeps_the_whole_lines(path: Path, content: bytes, strict: bool) -> None:
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        journal = open_journal(path, strict=strict, extra={"began": "today"})
        assert len(journal.results) == sum(cut > end for end in ends[1:])
        for name, value in (("a", [0.1, None]), ("b", {"deep": ["µ"]})):
            if name not in journal.results:
                journal.add(name, value)
        journal.close()
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace(b'"tiny"', b'"other"'), 'its model is "other", and "tiny" was asked for'),
        (lambda text: text.replace(KIND.encode() + b'": ', KIND.encode() + b'": 9'), "another version"),
        (lambda text: text.replace(KIND.encode(), b"specdec more"), "holds no results of specdec test"),
        (lambda text: text.replace(b'{"name": "a"', b'{"name": '), "damaged in line 2"),
        (lambda text: text.replace(b'"value": [', b'"other": ['), "damaged in line 2"),
    ],
)
def test_what_does_not_fit_is_refused_or_begun_anew(path: Path, content: bytes, change: Any, told: str) -> None:
    changed = change(content)
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(InvalidArgumentError, match=told):
        open_journal(path, strict=True)
    assert path.read_bytes() == changed
    journal = open_journal(path)
    assert journal.results == {}
    assert path.read_bytes().count(b"\n") == 1


def test_values_that_cannot_be_decoded_are_damage(path: Path, content: bytes) -> None:
    def only_lists(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError
        return value

    with pytest.raises(InvalidArgumentError, match="damaged in line 3"):
        open_journal(path, decode=only_lists, strict=True)
    assert path.read_bytes() == content
    assert list(open_journal(path, decode=only_lists).results) == ["a"]
    assert content.startswith(path.read_bytes())


def test_a_restart_forgets(path: Path, content: bytes) -> None:
    assert open_journal(path, restart=True, strict=True).results == {}
    assert path.read_bytes().count(b"\n") == 1 < content.count(b"\n")


def test_an_empty_or_finished_journal_leaves_no_file(path: Path) -> None:
    open_journal(path).close()
    assert not path.exists()
    journal = open_journal(path)
    journal.add("a", 1)
    journal.close()
    assert path.exists()
    journal.close(remove=True)
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="cannot keep results in"):
        open_journal(tmp_path / "file" / "journal")
    with pytest.raises(InvalidArgumentError, match="cannot keep results in"):
        open_journal(tmp_path)


def test_a_full_disk_leaves_no_empty_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(InvalidArgumentError, match=r"cannot keep results in .*: No space left on device"):
        open_journal(path)
    assert list(path.parent.iterdir()) == []
