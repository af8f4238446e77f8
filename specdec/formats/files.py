"""Opening files of a model so that each failure is one clear sentence."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from specdec import parse
from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.model_files import check_content
from specdec.read_file import MOST_TEXT_BYTES, open_regular, read_regular

_HEAD_BYTES = 64


class MappedFile(mmap.mmap):
    """A file's bytes, mapped for reading. A slice is a copy.

    The system ends a process that reads a mapped page which the file has no more, so its size is looked at first.
    """

    label = "the file"

    def __getitem__(self, key: Any) -> Any:
        """Bytes of the file.

        Raises:
            ModelFormatError: the file has become shorter.
        """
        if self.size() < len(self):
            raise ModelFormatError(f"{self.label} was cut off while it was read")
        return super().__getitem__(key)


def map_file(path: Path) -> MappedFile:
    """The file's bytes, mapped for reading.

    Raises:
        ModelFormatError: it is missing, unreadable, empty, or stands for another file.
    """
    try:
        with open_regular(path) as file:
            mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.label = path.name
    except unless_signalled(ValueError):
        raise ModelFormatError(f"{path.name} is empty") from None
    except unless_signalled(OSError) as error:
        raise ModelFormatError(f"cannot read {path}: {error.strerror}") from None
    try:
        check_content(mapped[:_HEAD_BYTES], path.name)
    except BaseException:
        mapped.close()
        raise
    return mapped


def read_bytes(path: Path) -> bytes:
    """The whole file.

    Raises:
        ModelFormatError: it is missing, unreadable, or stands for another file.
    """
    try:
        content = read_regular(path, most_bytes=MOST_TEXT_BYTES)
    except unless_signalled(OSError) as error:
        raise ModelFormatError(f"cannot read {path}: {error.strerror}") from None
    check_content(content, path.name)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ModelFormatError: it is missing, unreadable, no JSON, or something else than an object.
    """
    return parse_json(read_bytes(path), path.name)


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object from bytes; `where` names it in messages.

    Raises:
        ModelFormatError: no JSON, or something else than an object.
    """
    try:
        value = parse.parse_json(content)
    except parse.ParseError as error:
        raise ModelFormatError(f"{where} {error}") from None
    if not isinstance(value, dict):
        raise ModelFormatError(f"{where} must hold a JSON object")
    return value
