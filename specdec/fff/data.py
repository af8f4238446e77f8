"""Rows and what they should give: the digits that come with specdec, and files `.npz`, `.csv` and `.csv.gz`."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.read_file import open_regular

DIGITS = "digits"
ENDINGS = (".npz", ".csv", ".csv.gz")
_MOST_BYTES = 4 << 30


class Examples(NamedTuple):
    """Rows x (n, in) float32, and y: whole numbers (n,) to classify by, or float32 (n, out) to approximate."""

    x: NDArray[np.float32]
    y: NDArray[Any]

    @property
    def classifies(self) -> bool:
        """y names classes."""
        return np.ndim(self.y) == 1


def read_examples(name: str, *, regress: bool = False) -> Examples:
    """Examples by name: "digits", or a file.

    `digits` are 1,797 handwritten digits of 8 x 8 pixels from 0 to 16 (UCI, Optical Recognition of Handwritten
    Digits). A `.npz` holds arrays x (n, in) and y. In a `.csv` each line has one row's numbers, the last of which is y;
    a first line that holds no numbers is skipped.

    Args:
        name: "digits" or a path.
        regress: y is a value to approximate, even where all are whole numbers.

    Raises:
        InvalidArgumentError: the file is missing, damaged, or does not hold such numbers.
    """
    if name == DIGITS:
        with resources.files("specdec.data").joinpath("digits.csv.gz").open("rb") as file:
            table = np.loadtxt(io.BytesIO(gzip.decompress(file.read())), delimiter=",", dtype=np.float64)
        return checked(name, table[:, :-1], table[:, -1], regress)
    path = Path(name)
    if not name.endswith(ENDINGS):
        raise InvalidArgumentError(f"{name!r} must be {DIGITS}, or a file that ends in {', '.join(ENDINGS)}")
    try:
        open_regular(path).close()
        x, y = _npz(path) if name.endswith(".npz") else _csv(path)
    except FileNotFoundError:
        raise InvalidArgumentError(f"{path} does not exist") from None
    except unless_signalled(OSError, EOFError, zlib.error) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return checked(name, x, y, regress)


def _npz(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "x" not in arrays or "y" not in arrays:
                names = ", ".join(arrays) or "none"
                raise InvalidArgumentError(f"{path} must hold the arrays x and y, and has {names}")
            return arrays["x"], arrays["y"]
    except unless_signalled(ValueError, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"{path} is not an .npz file of numbers, or damaged ({error})") from None


def _csv(path: Path) -> tuple[Any, Any]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else open_regular(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise InvalidArgumentError(f"{path} holds more than {_MOST_BYTES} bytes: give an .npz")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"{path} is not UTF-8 text") from None
    is_title = not any(_is_number(one) for one in text.partition("\n")[0].split(","))
    try:
        table = np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2, skiprows=int(is_title))
    except ValueError as error:
        raise InvalidArgumentError(f"{path} is not a table of numbers with commas between them ({error})") from None
    if table.shape[1] < 2:
        raise InvalidArgumentError(f"{path} needs two columns or more: the last one is what the others should give")
    return table[:, :-1], table[:, -1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def checked(name: str, x: Any, y: Any, regress: bool) -> Examples:
    """Examples of two arrays; whole numbers in one dimension name classes, unless they are to be approximated.

    Raises:
        InvalidArgumentError: `name` holds something else than numbers, not as many of both, or infinite ones.
    """
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub":
        raise InvalidArgumentError(f"{name} must hold real numbers, not {x.dtype} and {y.dtype}")
    if x.ndim < 2 or len(x) != len(y) or not len(x) or y.ndim not in (1, 2):
        raise InvalidArgumentError(f"{name} must hold x (n, in) and y (n,) or (n, out), not {x.shape} and {y.shape}")
    x = x.reshape(len(x), -1).astype(np.float32)
    if not np.isfinite(x).all() or not np.isfinite(np.asarray(y, np.float64)).all():
        raise InvalidArgumentError(f"{name} holds values that are not finite")
    if y.ndim == 1 and not regress and bool((y == np.rint(y)).all()):
        return Examples(x, y.astype(np.int64))
    return Examples(x, y.reshape(len(y), -1).astype(np.float32))
