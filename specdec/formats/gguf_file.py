"""The GGUF container: its metadata, its tensors, and their rows as float32. What they mean lives in `gguf_source`.

The header is read here, the weights are decoded by the gguf package. That package's own reader makes several arrays for
every vocabulary entry (ten seconds and 300 MB for 150,000 of them) and cannot name the tensor whose type it does not
know.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from specdec.errors import ModelFormatError
from specdec.formats.files import map_file
from specdec.interrupts import unless_signalled
from specdec.warn import warn

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
# More parts than the names of parts can number.
MAX_PARTS = 99_999
# Far above every model: the largest have a few hundred keys, thousands of tensors and a million array elements.
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS, MAX_TENSORS, MAX_ELEMENTS = 1 << 16, 1 << 17, 1 << 22
_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", _BOOL: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    row_bytes: int
    offset: int
    size: int
    data: mmap.mmap


class _Header:
    """Reads a header front to back; running over the end is an error and never a short value."""

    def __init__(self, data: mmap.mmap, label: str) -> None:
        self.data, self.label, self.position, self.elements = data, label, 0, 0

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise ModelFormatError(f"{self.label} is truncated or damaged: its header runs past the end of the file")
        if self.position > MAX_HEADER_BYTES:
            raise ModelFormatError(f"{self.label} is damaged: its header is larger than {MAX_HEADER_BYTES >> 20} MiB")
        return self.data[start : self.position]

    def unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        try:
            return self.take(self.unpack("<Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise ModelFormatError(f"{self.label} is damaged: its header holds text that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.unpack("<I"), self.unpack("<Q"))
        raise ModelFormatError(f"{self.label} is damaged or too new: its header holds a value of unknown kind {kind}")

    def _array(self, kind: int, count: int) -> list[Any]:
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise ModelFormatError(
                f"{self.label} is damaged: the arrays of its header hold more than {MAX_ELEMENTS} values"
            )
        if kind in _SCALARS:
            layout = np.dtype(np.bool_) if kind == _BOOL else np.dtype(_SCALARS[kind])
            values: list[Any] = np.frombuffer(self.take(count * layout.itemsize), dtype=layout).tolist()
            return values
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        raise ModelFormatError(f"{self.label} is damaged or too new: its header holds an array of unknown kind {kind}")


class GGUFFile:
    """One open GGUF file, memory-mapped, with the other parts where a model is split into several files.

    Attributes:
        label: file name, for messages.
        metadata: every key of the header, values as plain Python objects; of a split model the first part's, without
            what it says of the split.

    Args:
        path: the file, or any part of a split model.
        part: read this file alone.

    Raises:
        ModelFormatError: not GGUF, of another version, truncated, damaged, or with a tensor that cannot be decoded; or
            parts are missing or do not belong together.

    Warns:
        UserWarning: a part is missing that no tensor is missing from.
    """

    def __init__(self, path: Path, *, part: bool = False) -> None:
        path = path if part else first_part(path)
        self.label = path.name
        self._data = map_file(path)
        self._tensors: dict[str, _Tensor] = {}
        self._others: list[GGUFFile] = []
        try:
            header = _Header(self._data, self.label)
            tensor_count, key_count = self._read_preamble(header)
            self.metadata = self._read_metadata(header, key_count)
            self._tensors = self._read_tensors(header, tensor_count)
            if not part:
                self._read_others(path)
        except BaseException:
            self.close()
            raise

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def type_name(self, name: str) -> str:
        return self._tensors[name].kind.name

    def float32(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.asarray(dequantize(self._rows(name, start, stop), self._tensors[name].kind), dtype=np.float32)

    def raw16(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._rows(name, start, stop).view("<u2").astype(np.uint16)

    def blocks(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"blocks": self._rows(name, start, stop)}

    def close(self) -> None:
        self._tensors = {}
        for other in self._others:
            other.close()
        self._data.close()

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """uint8 (rows, bytes of a row), a copy."""
        tensor = self._tensors[name]
        first, last = tensor.offset + start * tensor.row_bytes, tensor.offset + stop * tensor.row_bytes
        return np.frombuffer(tensor.data[first:last], dtype=np.uint8).reshape(stop - start, tensor.row_bytes)

    def _read_others(self, path: Path) -> None:
        """Open the other parts of a split model, and take their tensors."""
        number, count, total = (self.metadata.pop(f"split.{name}", 0) for name in ("no", "count", "tensors.count"))
        if not all(type(value) is int for value in (number, count, total)):
            raise ModelFormatError(f"{self.label} is damaged: what it says of its parts are not whole numbers")
        if count <= 1:
            return
        if number != 0 or count > MAX_PARTS:
            found = _PART_NAME.fullmatch(path.name)
            is_renamed = found is None or int(found[2]) != number + 1 or count > MAX_PARTS
            lacks = (
                "which its name does not say"
                if is_renamed
                else "and the first one is missing from its folder: download all parts"
            )
            raise ModelFormatError(f"{self.label} says that it is part {number + 1} of {count}, {lacks}")
        missing = []
        for other in part_paths(path, count):
            if not other.exists():
                missing.append(other.name)
                continue
            self._others.append(GGUFFile(other, part=True))
            self._take(self._others[-1], number=len(self._others) + len(missing), count=count)
        # A model whose tensors are all there lacks nothing.
        if missing and len(self._tensors) < total:
            raise ModelFormatError(
                f"{self.label} is one of {count} parts, and {missing[0]} is missing from its folder: download all parts"
            )
        if missing:
            warn(f"{self.label}: {missing[0]} is missing, but no tensor is")
        elif len(self._tensors) != total:
            raise ModelFormatError(
                f"{self.label} and its parts hold {len(self._tensors)} tensors, and {total} belong to the model"
            )

    def _take(self, other: GGUFFile, *, number: int, count: int) -> None:
        stated = other.metadata.get("split.no"), other.metadata.get("split.count")
        if stated != (number, count):
            raise ModelFormatError(f"{other.label} says that it is another part than {number + 1} of {count}")
        if twice := self._tensors.keys() & other._tensors.keys():
            raise ModelFormatError(f"tensor {min(twice)!r} is in both {self.label} and {other.label}")
        self._tensors |= other._tensors

    def _read_preamble(self, header: _Header) -> tuple[int, int]:
        if self._data[: len(MAGIC)] != MAGIC:
            raise ModelFormatError(f"{self.label} is not a GGUF file: it does not start with 'GGUF'")
        header.take(len(MAGIC))
        found = header.unpack("<I")
        if found not in VERSIONS:
            big_endian = found & 0xFFFF == 0
            what = "big-endian" if big_endian else f"version {found}"
            raise ModelFormatError(f"{self.label} is a {what} GGUF file: only little-endian versions 2 and 3 are read")
        tensors, keys = header.unpack("<Q"), header.unpack("<Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise ModelFormatError(
                f"{self.label} is damaged: it claims {tensors} tensors and {keys} metadata keys, and at most "
                f"{MAX_TENSORS} and {MAX_KEYS} are read"
            )
        return tensors, keys

    def _read_metadata(self, header: _Header, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = header.string()
            if key in metadata:
                raise ModelFormatError(f"{self.label} is damaged: metadata key {key!r} occurs twice")
            metadata[key] = header.value(header.unpack("<I"))
        return metadata

    def _read_tensors(self, header: _Header, count: int) -> dict[str, _Tensor]:
        tensors: dict[str, _Tensor] = {}
        for _ in range(count):
            name = header.string()
            if name in tensors:
                raise ModelFormatError(f"{self.label} is damaged: tensor {name!r} occurs twice")
            tensors[name] = self._read_tensor(header, name)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ModelFormatError(f"{self.label} is damaged: general.alignment {alignment!r} is not a power of two")
        base = -(-header.position // alignment) * alignment
        return self._placed(tensors, base)

    def _read_tensor(self, header: _Header, name: str) -> _Tensor:
        dimensions = header.unpack("<I")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise ModelFormatError(f"{self.label} is damaged: tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([header.unpack("<Q") for _ in range(dimensions)]))
        kind = self._kind(header.unpack("<I"), name)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if prod(shape) == 0 or shape[-1] % block:
            raise ModelFormatError(
                f"{self.label}: tensor {name!r} of shape {shape} cannot be {kind.name}, which stores blocks of {block}"
            )
        row_bytes = shape[-1] // block * block_bytes
        return _Tensor(shape, kind, row_bytes, header.unpack("<Q"), prod(shape[:-1]) * row_bytes, self._data)

    def _kind(self, number: int, name: str) -> GGMLQuantizationType:
        try:
            kind = GGMLQuantizationType(number)
        except unless_signalled(ValueError):
            shown = str(number)
        else:
            if _decodable(kind):
                return kind
            shown = f"{kind.name} ({number})"
        raise ModelFormatError(
            f"{self.label}: tensor {name!r} has type {shown}, which gguf {version('gguf')} does not decode"
        )

    def _placed(self, tensors: dict[str, _Tensor], base: int) -> dict[str, _Tensor]:
        """The tensors with absolute offsets, known to lie inside the file and not on each other."""
        end = base
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            offset = base + tensor.offset
            if offset < end:
                raise ModelFormatError(f"{self.label} is damaged: tensor {name!r} overlaps the one before it")
            end = offset + tensor.size
            if end > len(self._data):
                raise ModelFormatError(
                    f"{self.label} is truncated: tensor {name!r} ends at byte {end}, the file at {len(self._data)}"
                )
            tensors[name] = replace(tensor, offset=offset)
        return tensors


def first_part(path: Path) -> Path:
    """The first part of a split model of which `path` is any, by the names that splitting gives; else `path` itself."""
    found = _PART_NAME.fullmatch(path.name)
    first = path if found is None else path.with_name(f"{found[1]}-00001-of-{found[3]}.gguf")
    return first if first.exists() else path


def part_paths(first: Path, count: int) -> list[Path]:
    """The paths of the other parts of a split model.

    Raises:
        ModelFormatError: the name of the first part does not say that it is one.
    """
    found = _PART_NAME.fullmatch(first.name)
    if found is None or int(found[2]) != 1 or int(found[3]) != count:
        raise ModelFormatError(
            f"{first.name} is the first of {count} parts: give it its name back, NAME-00001-of-{count:05d}.gguf"
        )
    return [first.with_name(f"{found[1]}-{number:05d}-of-{found[3]}.gguf") for number in range(2, count + 1)]


@cache
def _decodable(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package can decode this type: asked of it with one empty block."""
    if kind not in GGML_QUANT_SIZES:
        return False
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True
