"""The safetensors container, one file or many with an index. What the tensors mean lives in `huggingface_source`.

Read here with NumPy alone: the safetensors package needs a framework that knows bfloat16 to hand one out.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from specdec.errors import ModelFormatError
from specdec.formats.files import map_file, parse_json, read_json
from specdec.model_files import INDEX_NAME, SINGLE_NAME, unlisted_weights
from specdec.weights.dtypes import to_float32

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own bound
MAX_TENSORS = 1 << 18  # of a file

_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_MOST_PARTS = 10_000

READABLE = ("F32", "F16", "BF16")
_DTYPES = {"F32": "<f4", "F16": "<u2", "BF16": "<u2", "U32": "<u4", "U8": "u1"}
_ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str
    offset: int


class SafetensorsFile:
    """One open safetensors file, memory-mapped.

    Attributes:
        label: file name, for messages.

    Raises:
        ModelFormatError: not safetensors, truncated, or with a header that contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.label = path.name
        self._data = map_file(path)
        self._tensors: dict[str, _Tensor] = {}
        try:
            self._tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def type_name(self, name: str) -> str:
        return self._tensors[name].dtype

    def float32(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = self._rows(name, start, stop)
        if self._tensors[name].dtype == "F32":
            return rows.astype(np.float32)
        return to_float32(rows.astype(np.uint16), "bfloat16" if self._tensors[name].dtype == "BF16" else "float16")

    def raw16(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._rows(name, start, stop).astype(np.uint16)

    def raw32(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._rows(name, start, stop).astype(np.uint32)

    def raw8(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._rows(name, start, stop).copy()

    def close(self) -> None:
        self._tensors = {}
        self._data.close()

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        tensor = self._tensors[name]
        item = np.dtype(_DTYPES[tensor.dtype])
        row_bytes = tensor.shape[-1] * item.itemsize
        first, last = tensor.offset + start * row_bytes, tensor.offset + stop * row_bytes
        return np.frombuffer(self._data[first:last], dtype=item).reshape(stop - start, tensor.shape[-1])

    def _read_header(self) -> dict[str, _Tensor]:
        size = len(self._data)
        if size < LENGTH_BYTES:
            raise ModelFormatError(f"{self.label} is not a safetensors file: it has only {size} bytes")
        length = struct.unpack("<Q", self._data[:LENGTH_BYTES])[0]
        if length > size - LENGTH_BYTES or self._data[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
            raise ModelFormatError(f"{self.label} is not a safetensors file, or truncated: its header does not fit")
        if length > MAX_HEADER_BYTES:
            raise ModelFormatError(f"{self.label} is damaged: its header of {length} bytes exceeds {MAX_HEADER_BYTES}")
        header = parse_json(self._data[LENGTH_BYTES : LENGTH_BYTES + length], f"the header of {self.label}")
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise ModelFormatError(f"{self.label} holds {len(header)} tensors: at most {MAX_TENSORS} are read")
        base, end, tensors = LENGTH_BYTES + length, 0, {}
        spans = [(*self._entry(name, entry), name) for name, entry in header.items()]
        for start, stop, shape, dtype, name in sorted(spans, key=lambda span: span[:2]):
            if start != end:
                raise ModelFormatError(f"{self.label} is damaged: there is a gap or an overlap before tensor {name!r}")
            end = stop
            tensors[name] = _Tensor(shape, dtype, base + start)
        if base + end != size:
            state = "truncated" if base + end > size else "damaged"
            raise ModelFormatError(f"{self.label} is {state}: its tensors end at byte {base + end}, the file at {size}")
        return tensors

    def _entry(self, name: str, entry: Any) -> tuple[int, int, tuple[int, ...], str]:
        """(start, stop, shape, dtype) of one header entry, checked against each other."""
        damaged = ModelFormatError(f"{self.label} is damaged: its header describes tensor {name!r} in no valid way")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise damaged
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if not whole or not all(type(x) is int and x >= 0 for x in [*shape, *offsets]):
            raise damaged
        if not isinstance(dtype, str) or dtype not in _ITEM_BITS:
            raise ModelFormatError(f"{self.label}: tensor {name!r} has unknown type {dtype!r}")
        start, stop = offsets
        if (stop - start) * 8 != prod(shape) * _ITEM_BITS[dtype]:
            raise damaged
        return start, stop, tuple(shape), dtype


class SafetensorsFolder:
    """The weights of a folder: `model.safetensors`, or the files that `model.safetensors.index.json` lists, or else all
    whose names say that they are weights, as mlx-lm reads them.

    Attributes:
        label: folder name, for messages.

    Raises:
        ModelFormatError: no weights, a listed file is missing or damaged, or index and files disagree.
    """

    def __init__(self, folder: Path) -> None:
        self.label = folder.name
        self._files: list[SafetensorsFile] = []
        self._where: dict[str, SafetensorsFile] = {}
        expected: dict[str, str] | None = None
        if (folder / SINGLE_NAME).exists():
            names = [SINGLE_NAME]
        elif (folder / INDEX_NAME).exists():
            expected = _read_index(folder / INDEX_NAME)
            names = sorted(set(expected.values()))
        elif names := unlisted_weights(folder):
            _check_parts(folder, names)
        else:
            raise ModelFormatError(f"{folder} has no {SINGLE_NAME} and no {INDEX_NAME}; other weights are not read")
        try:
            self._open(folder, names, expected)
        except BaseException:
            self.close()
            raise

    def names(self) -> Collection[str]:
        return self._where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name].shape(name)

    def type_name(self, name: str) -> str:
        return self._where[name].type_name(name)

    def float32(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._where[name].float32(name, start, stop)

    def raw16(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._where[name].raw16(name, start, stop)

    def raw32(self, name: str, start: int, stop: int) -> np.ndarray:
        """uint32 (stop - start, columns): those rows as they are stored; only for U32."""
        return self._where[name].raw32(name, start, stop)

    def raw8(self, name: str, start: int, stop: int) -> np.ndarray:
        """uint8 (stop - start, columns): those rows as they are stored; only for U8."""
        return self._where[name].raw8(name, start, stop)

    def blocks(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        raise NotImplementedError("a safetensors file by itself says of no tensor that it is quantised")

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files, self._where = [], {}

    def _open(self, folder: Path, names: list[str], expected: dict[str, str] | None) -> None:
        for name in names:
            file = SafetensorsFile(folder / name)
            self._files.append(file)
            for tensor in file.names():
                if tensor in self._where:
                    other = self._where[tensor].label
                    raise ModelFormatError(f"{self.label}: tensor {tensor!r} is in both {other} and {name}")
                self._where[tensor] = file
        for tensor, name in (expected or {}).items():
            if tensor not in self._where or self._where[tensor].label != name:
                raise ModelFormatError(f"{self.label}: {INDEX_NAME} puts tensor {tensor!r} into {name}, which lacks it")


def _check_parts(folder: Path, names: list[str]) -> None:
    """Refuse files whose names say that there are more of them."""
    for name in names:
        if (part := _PART.fullmatch(name)) is None:
            continue
        for number in range(1, min(int(part[2]), _MOST_PARTS) + 1):
            if (other := f"{part[1]}-{number:05d}-of-{part[2]}.safetensors") not in names:
                raise ModelFormatError(
                    f"{folder.name} has {name}, and {other} is missing from its folder: download all parts"
                )


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to file name."""
    weights = read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ModelFormatError(f"{path.name} has no weight_map")
    for name in weights.values():
        # The files of a checkpoint lie beside its index; any other path could read files that the user did not name.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelFormatError(f"{path.name} lists {name!r}, which is not a safetensors file in the same folder")
    return weights
