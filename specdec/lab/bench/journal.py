"""The file that an interrupted run goes on from: a line that says what is measured, and one for every answer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specdec import paths
from specdec.errors import InvalidArgumentError
from specdec.lab.bench.sample import Place, Sample
from specdec.parse import parse_json

FORMAT = 1
_BEGINNING = b'{"specdec bench": '


class Journal:
    """Answers by place, kept in a file as they come.

    Every line is written in one piece and brought to the disk before the next answer begins, so a run that is killed at
    any moment leaves whole lines, and at most one torn line at the end, which is dropped.

    Args:
        path: the file; created when missing.
        header: what is measured, as plain JSON values. A file of something else is refused.
        extra: what to note beside it when the file is begun.

    Attributes:
        path: the file.
        samples: what is in it, by place.
        header: that of the file, which may hold more than was asked for: such as when the run began.

    Raises:
        InvalidArgumentError: the file is of another run, damaged, or cannot be read or written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, extra: Mapping[str, Any] | None = None) -> None:
        self.path, self.samples = path, dict[Place, Sample]()
        self.header: dict[str, Any] = {"specdec bench": FORMAT, "of": dict(header)} | dict(extra or {})
        try:
            paths.private_folder(path.parent)
            size = self._read(header) if path.exists() else 0
            if path.exists():
                os.truncate(path, size)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if not size:
                self._write(self.header)
        except OSError as error:
            raise InvalidArgumentError(f"cannot keep answers in {path}: {error.strerror}") from None

    def add(self, sample: Sample) -> None:
        """Keep an answer.

        Raises:
            InvalidArgumentError: the file cannot be written.
        """
        try:
            self._write(sample.to_dict())
        except OSError as error:
            raise InvalidArgumentError(f"cannot keep answers in {self.path}: {error.strerror}") from None
        self.samples[sample.place] = sample

    def close(self) -> None:
        """Let go of the file, which goes when no answer is in it; more than once does no harm."""
        if not self.samples:
            self.path.unlink(missing_ok=True)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError(28, "no space left on the device")
        os.fsync(self._file)

    def _read(self, header: Mapping[str, Any]) -> int:
        """Take in what the file holds; returns the length of its whole lines."""
        whole, newline, torn = self.path.read_bytes().rpartition(b"\n")
        if not newline and _BEGINNING.startswith(torn[: len(_BEGINNING)]):
            return 0  # not even the first line was written whole
        first, *lines = whole.split(b"\n") if newline else [torn]
        self._check(_parsed(first), header)
        for number, line in enumerate(lines, start=2):
            try:
                sample = Sample.from_dict(_parsed(line))
            except (KeyError, TypeError, ValueError):
                raise InvalidArgumentError(
                    f"{self.path} is damaged in line {number}: give another file, or begin anew with --restart"
                ) from None
            self.samples.setdefault(sample.place, sample)
        return len(whole) + 1

    def _check(self, first: dict[str, Any], header: Mapping[str, Any]) -> None:
        """Refuse a file of something else."""
        if "specdec bench" not in first or not isinstance(first.get("of"), dict):
            raise InvalidArgumentError(f"{self.path} holds no answers of specdec bench: give another file")
        if first["specdec bench"] != FORMAT:
            raise InvalidArgumentError(
                f"{self.path} was written by another version of specdec bench: give another file, or begin anew with "
                "--restart"
            )
        there, wanted = first["of"], json.loads(json.dumps(header))
        for key in dict.fromkeys([*wanted, *there]):
            if there.get(key) != wanted.get(key):
                was, asked = _shown(there.get(key)), _shown(wanted.get(key))
                raise InvalidArgumentError(
                    f"{self.path} is of another run: its {key} is {was}, and {asked} was asked for; give another file, "
                    "or begin anew with --restart"
                )
        self.header = first


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
