"""The file from which an interrupted measurement continues: a line about the measurement, and one for each result."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from specdec import paths
from specdec.errors import InvalidArgumentError
from specdec.parse import parse_json
from specdec.read_file import read_regular
from specdec.warn import warn

FORMAT = 2
_SYNC_EVERY_S = 1.0
_MOST_BYTES = 1 << 29

T = TypeVar("T")


class Journal(Generic[T]):
    """Results by name, written as they come.

    Every line is written in one piece. A process that is killed at any moment leaves whole lines and at most one torn
    line at the end, which is dropped; a machine that stops loses the last second. If the file belongs in the cache
    folder and that is read-only, results stay in memory alone, with a warning.

    Args:
        path: the file; created when missing.
        kind: what writes it, such as "specdec bench".
        of: what is measured, as plain JSON values.
        decode: the result of a line's JSON value; raises KeyError, TypeError or ValueError if it is not one.
        extra: noted in the first line when the file is begun, and not compared.
        strict: refuse a file that is of something else or damaged. Without it such a file is started over, or cut off
            before the damage, which suits a file that the user did not name.
        restart: forget what the file holds.

    Attributes:
        path: the file.
        results: what is in it, in order.
        header: its first line, which may hold more than was asked for, such as when the run began.

    Raises:
        InvalidArgumentError: the file cannot be read or written, or `strict` refuses it.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        of: Mapping[str, Any],
        *,
        decode: Callable[[Any], T],
        extra: Mapping[str, Any] | None = None,
        strict: bool = False,
        restart: bool = False,
    ) -> None:
        self.path, self.results = path, dict[str, T]()
        self.header: dict[str, Any] = {kind: FORMAT, "of": json.loads(json.dumps(of)), **(extra or {})}
        self._kind, self._decode, self._strict, self._synced_s = kind, decode, strict, 0.0
        self._file, size = -1, 0
        try:
            paths.private_folder(path.parent)
            size = self._read() if path.exists() and not restart else 0
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.truncate(path, size)
            if not size:
                self._write(self.header)
        except OSError as error:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                if not size:  # not even the first line was written
                    path.unlink(missing_ok=True)
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or paths.home() not in path.parents:
                raise self._unwritable(error) from None
            warn(f"results of an interrupted run are not kept: cannot write {path.parent} ({error.strerror})")
        self._is_kept = self._file >= 0

    def add(self, name: str, value: Any) -> None:
        """Write the JSON value of a result.

        Raises:
            InvalidArgumentError: the file cannot be written.
        """
        try:
            if self._is_kept:
                self._write({"name": name, "value": value})
        except OSError as error:
            raise self._unwritable(error) from None
        self.results[name] = self._decode(json.loads(json.dumps(value)))  # what a run that is resumed would read

    def close(self, *, remove: bool = False) -> None:
        """Close the file, and delete it if asked to or if it holds no result; more than once does no harm."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
        if self._is_kept and (remove or not self.results):
            self.path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> InvalidArgumentError:
        return InvalidArgumentError(f"cannot keep results in {self.path}: {error.strerror}")

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError(28, os.strerror(28))
        if time.monotonic() - self._synced_s >= _SYNC_EVERY_S:
            os.fsync(self._file)
            self._synced_s = time.monotonic()

    def _read(self) -> int:
        """Read the file; returns the length of the lines to keep, 0 to start over."""
        whole, newline, torn = read_regular(self.path, most_bytes=_MOST_BYTES).rpartition(b"\n")
        if not newline and f'{{"{self._kind}": '.encode().startswith(torn[: len(self._kind) + 5]):
            return 0  # not even the first line was written whole
        first, *lines = whole.split(b"\n") if newline else [torn]
        if not self._fits(_parsed(first)):
            return 0
        size = len(first) + 1
        for number, line in enumerate(lines, start=2):
            try:
                parsed = _parsed(line)
                self.results[str(parsed["name"])] = self._decode(parsed["value"])
            except (KeyError, TypeError, ValueError):
                if not self._strict:
                    break
                raise self._refusal(f"is damaged in line {number}") from None
            size += len(line) + 1
        return size

    def _fits(self, first: dict[str, Any]) -> bool:
        """Whether a first line is of what is measured.

        Raises:
            InvalidArgumentError: it is not, and `strict` refuses it.
        """
        if (reason := self._difference(first)) is None:
            self.header = first
        elif self._strict:
            raise self._refusal(reason)
        return reason is None

    def _difference(self, first: dict[str, Any]) -> str | None:
        """What tells a first line from the one that is wanted."""
        of, wanted = first.get("of"), self.header["of"]
        if self._kind not in first or not isinstance(of, dict):
            return f"holds no results of {self._kind}"
        if first[self._kind] != FORMAT:
            return f"was written by another version of {self._kind}"
        for key in dict.fromkeys([*wanted, *of]):
            if of.get(key) != wanted.get(key):
                was, asked = _shown(of.get(key)), _shown(wanted.get(key))
                return f"is of another run: its {key} is {was}, and {asked} was asked for"
        return None

    def _refusal(self, reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self.path} {reason}; give another file, or start over with --restart")


def as_is(value: Any) -> Any:
    """Results that are their own JSON values."""
    return value


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
