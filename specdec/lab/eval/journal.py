"""What an evaluation has found so far, in a file that an interrupted one goes on from: `Journal`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specdec import paths
from specdec.errors import InvalidArgumentError
from specdec.parse import parse_json

_FORMAT = 1


class Journal:
    """Values by name, a line of JSON each, kept as they come.

    A line is written in one piece. Whatever cannot be read as a whole line is measured again, and so is everything in a
    file of other settings or of another version, which is begun anew.

    Args:
        path: the file.
        settings: what is measured, as plain JSON values.
        restart: forget what the file holds.

    Attributes:
        path: the file.
        values: what is known.

    Raises:
        InvalidArgumentError: the file cannot be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path, self.values = path, dict[str, Any]()
        header = {"specdec eval": _FORMAT, "settings": json.loads(json.dumps(settings))}
        try:
            paths.private_folder(path.parent)
            size = 0 if restart or not path.exists() else self._read(header)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.truncate(path, size)
            if not size:
                self._write(header)
        except OSError as error:
            raise InvalidArgumentError(f"cannot keep results in {path}: {error.strerror}") from None

    def add(self, name: str, value: Any) -> None:
        """Keep a value.

        Raises:
            InvalidArgumentError: the file cannot be written.
        """
        try:
            self._write({"name": name, "value": value})
        except OSError as error:
            raise InvalidArgumentError(f"cannot keep results in {self.path}: {error.strerror}") from None
        self.values[name] = json.loads(json.dumps(value))  # what a run that is resumed would read

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file, and remove it when the evaluation is complete or nothing was found."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if remove or not self.values:
            self.path.unlink(missing_ok=True)

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError(28, os.strerror(28))

    def _read(self, header: Mapping[str, Any]) -> int:
        """Take in what the file holds; returns the length of its good lines, 0 when it is of something else."""
        size = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                parsed = parse_json(line)
                if not line.endswith(b"\n"):
                    break
                if size:
                    self.values[parsed["name"]] = parsed["value"]
                elif parsed != header:
                    break
            except (ValueError, KeyError, TypeError):
                break
            size += len(line)
        return size
