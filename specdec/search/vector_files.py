"""Files of vectors: `.npy`, `.fvecs`, and `.parquet` with a column of lists."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.read_file import open_regular

ENDINGS = (".npy", ".fvecs", ".parquet")


def read_vectors(path: str | Path, *, column: str | None = None) -> NDArray[Any]:
    """Vectors (n, d) of a file; those of `.npy` and `.fvecs` are memory-mapped.

    Args:
        path: a file whose name ends in `.npy`, `.fvecs` or `.parquet`.
        column: of a parquet file; None where only one holds lists of numbers.

    Raises:
        InvalidArgumentError: the file is missing, damaged, of another kind, or holds no matrix of real numbers.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise InvalidArgumentError(f"{path} must end in {', '.join(ENDINGS)}")
    if column is not None and kind != ".parquet":
        raise InvalidArgumentError(f"a column can be chosen of a parquet file, and {path} is none")
    try:
        open_regular(path).close()
        array = _npy(path) if kind == ".npy" else _fvecs(path) if kind == ".fvecs" else _parquet(path, column)
    except FileNotFoundError:
        raise InvalidArgumentError(f"{path} does not exist") from None
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror or error}") from None
    if array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise InvalidArgumentError(f"{path} must hold vectors, (n, d) numbers, not {array.dtype} of {array.shape}")
    return array


def _npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise InvalidArgumentError(f"{path} is not a whole .npy file of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise InvalidArgumentError(f"{path} is an archive of arrays, not a .npy file")
    return array


def _fvecs(path: Path) -> NDArray[Any]:
    """Each vector is its number of dimensions, an int32, and so many float32 (http://corpus-texmex.irisa.fr)."""
    size = path.stat().st_size
    dims = int(np.fromfile(path, "<i4", 1)[0]) if size >= 4 else 0
    if not 1 <= dims <= 65536 or size % (4 + 4 * dims):
        raise InvalidArgumentError(f"{path} is not a whole .fvecs file: {size} bytes for vectors of {dims} dimensions")
    table = np.memmap(path, "<f4", mode="r").reshape(-1, 1 + dims)
    if (table.view("<i4")[:, 0] != dims).any():
        raise InvalidArgumentError(f"{path} is not a .fvecs file: its vectors differ in dimensions")
    return table[:, 1:]


def _parquet(path: Path, column: str | None) -> NDArray[Any]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise InvalidArgumentError("parquet files need pyarrow: install specdec-mlx[search]") from None
    try:
        file = parquet.ParquetFile(path)
        types = {field.name: field.type for field in file.schema_arrow}
        lists = [name for name, kind in types.items() if _is_list(arrow, kind)]
        if column is None and len(lists) != 1:
            raise InvalidArgumentError(f"{path} has {len(lists)} columns of lists of numbers: name one with --column")
        name = lists[0] if column is None else column
        if name not in lists:
            raise InvalidArgumentError(f"{path} has no column {name!r} of lists of numbers: choose from {lists}")
        values = file.read(columns=[name]).column(0).combine_chunks()
    except arrow.ArrowException as error:
        raise InvalidArgumentError(f"{path} is not a whole parquet file: {error}") from None
    lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False)) if len(values) else np.array([0])
    flat = values.flatten()
    if values.null_count or flat.null_count or len(lengths) != 1 or lengths[0] < 1:
        raise InvalidArgumentError(f"column {name!r} of {path} must hold lists of one length without gaps")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(values), int(lengths[0]))


def _is_list(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)))
