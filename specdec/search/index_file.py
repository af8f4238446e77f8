"""The file of an index: a description, then all arrays. Format: docs/search.md.

    bytes 0..15    "specdec-search", padded with zeros
    16..19         version, little-endian
    20..23         length of the description in bytes
    24..55         SHA-256 of the description
    56..           the description, JSON; then zeros up to a multiple of 4096
    payload        arrays, each at a multiple of 4096 from the start of the file

Where an array lies follows from the description's counts, so a file cannot point outside itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from specdec.errors import IndexFileError
from specdec.interrupts import unless_signalled
from specdec.parse import ParseError, parse_json
from specdec.read_file import open_regular
from specdec.search.chunk import CHUNK, FORMS, METRICS, Chunk, Space, width_of
from specdec.whole_file import whole_file

MAGIC = b"specdec-search\0\0"
VERSION = 1
_PREFIX = struct.Struct("<16sII32s")
_PAGE = 4096
_MOST_DESCRIPTION = 1 << 20
_MOST_DIMS, _MOST_VECTORS = 65536, 2**30
_BLOCK = 1 << 22


def write_index(path: Path, space: Space, chunks: list[Chunk]) -> None:
    """Write an index; `path` is replaced when all is written.

    Raises:
        OSError: it cannot be written.
    """
    arrays = [space.centre, space.spread, *(array for chunk in chunks for array in _arrays(chunk))]
    digest, nbytes = hashlib.sha256(), 0
    for array in arrays:
        for piece in _padded(array):
            digest.update(piece)
            nbytes += len(piece)
    description = {
        "metric": space.metric,
        "form": space.form,
        "dims": space.dims,
        "vectors": sum(len(chunk) for chunk in chunks),
        "payload_bytes": nbytes,
        "payload_sha256": digest.hexdigest(),
    }
    text = json.dumps(description).encode()
    head = _PREFIX.pack(MAGIC, VERSION, len(text), hashlib.sha256(text).digest()) + text
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(head + bytes(-len(head) % _PAGE))
        for array in arrays:
            for piece in _padded(array):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def read_index(path: Path, *, verify: bool) -> tuple[Space, list[Chunk]]:
    """Map an index.

    Raises:
        IndexFileError: it is missing, truncated, damaged, or of another version.
    """
    try:
        with open_regular(path) as file:
            description, start = _describe(path, file)
            size = os.fstat(file.fileno()).st_size
            wanted = start + description["payload_bytes"]
            if size != wanted:
                raise IndexFileError(f"{path} has {size} bytes where its description says {wanted}: it is not whole")
            if verify and _digest(file, start) != description["payload_sha256"]:
                raise IndexFileError(f"{path} is damaged: its checksum is not the one in its description")
            data = np.memmap(file, np.uint8, mode="c")
    except FileNotFoundError:
        raise IndexFileError(f"{path} does not exist: build it with `specdec search build`") from None
    except unless_signalled(OSError) as error:
        raise IndexFileError(f"cannot read {path}: {error.strerror or error}") from None
    return _mapped(data, start, description)


def _arrays(chunk: Chunk) -> list[NDArray[Any]]:
    return [array for array in (chunk.codes, chunk.numbers, chunk.rows, chunk.factors) if array is not None]


def _padded(array: NDArray[Any]) -> Iterator[memoryview | bytes]:
    yield np.ascontiguousarray(array).data.cast("B")
    if gap := -array.nbytes % _PAGE:
        yield bytes(gap)


def _describe(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The description of a file, checked, and where its payload begins."""
    prefix = file.read(_PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC[: len(prefix)] or not prefix:
        raise IndexFileError(f"{path} is not a search index: build one with `specdec search build`")
    if len(prefix) < _PREFIX.size:
        raise IndexFileError(f"{path} is not whole: it ends in its header")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise IndexFileError(f"{path} is of version {version} and this specdec reads version {VERSION}: build it again")
    text = file.read(length) if length <= _MOST_DESCRIPTION else b""
    if len(text) != length or hashlib.sha256(text).digest() != digest:
        raise IndexFileError(f"{path} is damaged: its description is not whole")
    try:
        found = parse_json(text)
        _check(found)
    except (ParseError, ValueError, TypeError, KeyError) as error:
        raise IndexFileError(f"{path} is damaged: its description says {error}") from None
    return found, -(-(_PREFIX.size + length) // _PAGE) * _PAGE


def _check(found: Any) -> None:
    """Raise a `ValueError` for a description that no index has."""
    if not isinstance(found, dict) or found.get("metric") not in METRICS or found.get("form") not in FORMS:
        raise ValueError("no metric and form that this specdec knows")
    for name, most in (("dims", _MOST_DIMS), ("vectors", _MOST_VECTORS), ("payload_bytes", 1 << 62)):
        if type(found.get(name)) is not int or not 1 <= found[name] <= most:
            raise ValueError(f"{name} {found.get(name)!r}")
    if not isinstance(found.get("payload_sha256"), str):
        raise ValueError("no checksum")
    sizes = (math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in _layout(found))
    if sum(-(-size // _PAGE) * _PAGE for size in sizes) != found["payload_bytes"]:
        raise ValueError("sizes that contradict each other")


def _layout(description: dict[str, Any]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Type and shape of every array, in the order of the file."""
    dims = description["dims"]
    row_dtype, planes = FORMS[description["form"]]
    yield from ((np.float32, (dims,)),) * 2
    for first in range(0, description["vectors"], CHUNK):
        count = min(CHUNK, description["vectors"] - first)
        yield np.uint8, (planes, dims, width_of(count) // 2)
        yield np.float32, (4, count)
        if row_dtype is not None:
            yield row_dtype, (count, dims)
        if description["metric"] == "cosine":
            yield np.float64, (count,)


def _digest(file: BinaryIO, start: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _mapped(data: NDArray[np.uint8], start: int, description: dict[str, Any]) -> tuple[Space, list[Chunk]]:
    arrays = list[NDArray[Any]]()
    for dtype, shape in _layout(description):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        arrays.append(np.asarray(data[start : start + size]).view(dtype).reshape(shape))
        start += -(-size // _PAGE) * _PAGE
    centre, spread, *rest = arrays
    space = Space(description["metric"], description["form"], centre, spread)
    parts = iter(rest)
    chunks = []
    for _ in range(0, description["vectors"], CHUNK):
        codes, numbers = next(parts), next(parts)
        rows = next(parts) if space.row_dtype is not None else None
        chunks.append(Chunk(codes, numbers, rows, next(parts) if space.metric == "cosine" else None))
    return space, chunks
