"""16-bit weights as raw bits: to float32 and back, and what the bits say without decoding. Files live in `store`.

Weights travel as uint16 arrays of raw bits, because NumPy has no bfloat16 and because a copy of bits is exact for
every value: minus zero and subnormals survive.
"""

from __future__ import annotations

import numpy as np

from specdec.errors import InvalidArgumentError

DTYPES = ("float16", "bfloat16")

# The smallest magnitude (bits without the sign) that is not a finite number.
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}


def check_dtype(dtype: str) -> str:
    """`dtype` itself.

    Raises:
        InvalidArgumentError: it is neither "float16" nor "bfloat16".
    """
    if dtype not in DTYPES:
        raise InvalidArgumentError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return dtype


def to_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The values of raw 16-bit weights; exact.

    Args:
        bits: uint16, any shape.
        dtype: what the bits mean, one of `DTYPES`.

    Returns:
        float32, the same shape.
    """
    if check_dtype(dtype) == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Raw bits of `values` rounded to nearest, ties to even; what is too large becomes infinity, NaN stays NaN.

    Args:
        values: float32, any shape.
        dtype: one of `DTYPES`.

    Returns:
        uint16, the same shape.
    """
    values = np.asarray(values, dtype=np.float32)
    if check_dtype(dtype) == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    # Adding half a unit in the last kept place, less one when that place is even, rounds ties to even.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    # The same sum would carry a NaN into infinity or minus zero: keep its sign and set the quiet bit.
    quiet = ((bits >> np.uint32(16)) | np.uint32(0x0040)).astype(np.uint16)
    return np.where(np.isnan(values), quiet, rounded)


def magnitude(bits: np.ndarray) -> np.ndarray:
    """The bits without the sign, uint16: they compare as integers the way |w| compares as numbers."""
    return bits & np.uint16(0x7FFF)


def all_finite(bits: np.ndarray, dtype: str) -> bool:
    """Whether none of these raw weights is infinite or NaN."""
    return bits.size == 0 or int(magnitude(bits).max()) < _INFINITY[check_dtype(dtype)]
