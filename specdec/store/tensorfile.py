"""Writing and mapping safetensors files whose layout is known before their contents. What goes into them: `plan`.

The `safetensors` package writes a file from arrays that are all in memory; a conversion holds a few at a time, so the
header is written first and every tensor then goes to its place. The files are plain safetensors and any reader of that
format reads them. Format: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from specdec.errors import StoreError
from specdec.interrupts import unless_signalled
from specdec.parse import parse_json
from specdec.read_file import open_regular
from specdec.store.staging import writing
from specdec.weights.base import TensorSpec

# Every tensor begins at a multiple of this: a cache line, and the widest vector register there is.
ALIGNMENT = 64
FILLER = "padding."
_MAX_HEADER_BYTES = 100_000_000
_NUMPY: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
}


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and where its bytes begin, counted from the start of the file."""

    spec: TensorSpec
    offset: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A whole file but for its contents.

    Attributes:
        tensors: every tensor by name, in file order, fillers included.
        header: the bytes before the first tensor.
        nbytes: size of the file.
    """

    tensors: dict[str, Placed]
    header: bytes
    nbytes: int


def lay_out(specs: Mapping[str, TensorSpec]) -> FileLayout:
    """Place tensors one after another, each at a multiple of `ALIGNMENT`.

    safetensors allows no gap between tensors, so a gap is itself a tensor of zeros, named `padding.0`, `padding.1`, ….
    """
    relative: dict[str, Placed] = {}
    position = fillers = 0
    for name, spec in specs.items():
        if gap := -position % ALIGNMENT:
            relative[f"{FILLER}{fillers}"] = Placed(TensorSpec("U8", (gap,)), position)
            position, fillers = position + gap, fillers + 1
        relative[name] = Placed(spec, position)
        position += spec.nbytes
    table = {
        name: {
            "dtype": placed.spec.dtype,
            "shape": list(placed.spec.shape),
            "data_offsets": [placed.offset, placed.offset + placed.spec.nbytes],
        }
        for name, placed in relative.items()
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    tensors = {name: Placed(placed.spec, placed.offset + len(header)) for name, placed in relative.items()}
    return FileLayout(tensors, header, len(header) + position)


def read_layout(path: Path) -> FileLayout:
    """The layout of a file, checked against its size; its contents are not read.

    Raises:
        StoreError: the file is missing, truncated, or no safetensors file.
    """
    try:
        with open_regular(path) as file:
            nbytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(prefix := file.read(8), "little")
            text = file.read(length) if len(prefix) == 8 and length <= min(nbytes, _MAX_HEADER_BYTES) else b""
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: the store is incomplete, convert the model again") from None
    except unless_signalled(OSError) as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    try:
        if not text or len(text) != length:
            raise ValueError("no whole header")
        table = {name: entry for name, entry in parse_json(text).items() if name != "__metadata__"}
        tensors, position = {}, 8 + length
        for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
            spec = TensorSpec(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            begin, end = entry["data_offsets"]
            if (begin, end) != (position - 8 - length, position - 8 - length + spec.nbytes):
                raise ValueError("tensors overlap or leave a gap")
            tensors[name] = Placed(spec, position)
            position += spec.nbytes
    except unless_signalled(ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{path} is damaged, or not a safetensors file: convert the model again") from None
    if position != nbytes:
        what = "truncated" if nbytes < position else "longer than it says"
        raise StoreError(f"{path} is {what}: {nbytes} bytes where its header says {position}; convert the model again")
    return FileLayout(tensors, prefix + text, nbytes)


class TensorFile:
    """A file of this layout, memory-mapped for reading; arrays keep the map alive, so there is nothing to close.

    The system ends a process that reads a mapped page which the file has no more: somebody wrote over the file in
    place, or cut it off. So the file is looked at before anything of it is read. An array is to be used soon: `check`
    looks again.

    Raises:
        StoreError: the file has become shorter than its layout says.
    """

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self.path, self.layout = path, layout
        self._reads_ahead = True
        with open_regular(path) as file:
            self._stamp = _stamp(os.fstat(file.fileno()))
            if self._stamp[-1] < layout.nbytes:
                raise self._changed()
            self._map = mmap.mmap(file.fileno(), layout.nbytes, access=mmap.ACCESS_READ)

    def check(self) -> None:
        """Refuse a file that was changed since it was opened.

        Raises:
            StoreError: the file was overwritten or truncated.
        """
        if self._map.size() < self.layout.nbytes:
            raise self._changed()
        with contextlib.suppress(OSError):  # the file may have been removed, and another one may have its name
            found = _stamp(self.path.stat())
            if found[:2] == self._stamp[:2] and found != self._stamp:
                raise self._changed()

    def array(self, name: str) -> np.ndarray:
        """One tensor: read-only, without a copy; F16 and BF16 as uint16 raw bits.

        Raises:
            StoreError: see `check`.
        """
        placed = self._wanted(name)
        count = int(np.prod(placed.spec.shape))
        flat: np.ndarray = np.frombuffer(self._map, dtype=_NUMPY[placed.spec.dtype], count=count, offset=placed.offset)
        return flat.reshape(placed.spec.shape)

    def checksum(self, name: str) -> str:
        """SHA-256 of one tensor's bytes, hexadecimal.

        Raises:
            StoreError: see `check`.
        """
        placed = self._wanted(name)
        with memoryview(self._map) as whole, whole[placed.offset : placed.offset + placed.spec.nbytes] as part:
            digest = hashlib.sha256(part).hexdigest()
        self._advise("MADV_DONTNEED", placed)
        return digest

    @contextlib.contextmanager
    def not_reading_ahead(self) -> Iterator[None]:
        """Meanwhile the system reads the pages of tensors that are asked for, and none beside them.

        By itself it reads megabytes around, and tensors that are left out may be shorter than that.
        """
        self._reads_ahead = False
        self._advise("MADV_RANDOM")
        try:
            yield
        finally:
            self._reads_ahead = True
            self._advise("MADV_NORMAL")

    def release(self) -> None:
        """Tell the system that none of the pages is needed now; they would count as this process's memory.

        Raises:
            StoreError: see `check`.
        """
        self.check()
        self._advise("MADV_DONTNEED")

    def _changed(self) -> StoreError:
        return StoreError(f"{self.path} was changed or cut off while it was in use: load the model again")

    def _wanted(self, name: str) -> Placed:
        self.check()
        placed = self.layout.tensors[name]
        if not self._reads_ahead:
            self._advise("MADV_WILLNEED", placed)
        return placed

    def _advise(self, advice: str, placed: Placed | None = None) -> None:
        """Tell the system what to do with the pages of a tensor or the whole file; not every system can be told."""
        if not hasattr(mmap, advice):
            return
        begin, end = (placed.offset, placed.offset + placed.spec.nbytes) if placed else (0, self.layout.nbytes)
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(getattr(mmap, advice), first, end - first)


def _stamp(found: os.stat_result) -> tuple[int, int, int, int]:
    """Which file it is, when it was last changed, and its size."""
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class TensorFileWriter:
    """Fills a file of known layout, tensor by tensor, each from front to back; a context manager.

    Raises:
        StoreError: any write fails, for instance for lack of space.
    """

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self.path, self.layout = path, layout
        self._hashes = {name: hashlib.sha256() for name in layout.tensors}
        self._written = dict.fromkeys(layout.tensors, 0)
        self._fd = -1

    def __enter__(self) -> TensorFileWriter:
        with writing(self.path):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with writing(self.path):
                os.ftruncate(self._fd, self.layout.nbytes)
            self._put(self.layout.header, 0)
            for name, placed in self.layout.tensors.items():
                if name.startswith(FILLER):
                    self.append(name, np.zeros(placed.spec.shape, dtype=np.uint8))
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def append(self, name: str, array: np.ndarray) -> None:
        """Write the next part of a tensor.

        Args:
            name: which tensor.
            array: its next bytes, of the item size that the layout says.
        """
        placed = self.layout.tensors[name]
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        done = self._written[name]
        if array.dtype.itemsize != _NUMPY[placed.spec.dtype].itemsize or done + data.nbytes > placed.spec.nbytes:
            raise StoreError(f"tensor {name!r} has other contents than {placed.spec.dtype} {placed.spec.shape}")
        self._put(data, placed.offset + done)
        self._hashes[name].update(data)
        self._written[name] = done + data.nbytes

    def finish(self) -> dict[str, str]:
        """Push the file to the disk.

        Returns:
            SHA-256 of every tensor, hexadecimal, by name.
        """
        for name, placed in self.layout.tensors.items():
            if self._written[name] != placed.spec.nbytes:
                raise StoreError(f"tensor {name!r} got {self._written[name]} bytes of {placed.spec.nbytes}")
        with writing(self.path):
            os.fsync(self._fd)
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        with writing(self.path):
            while view.nbytes:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count
