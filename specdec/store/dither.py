"""The dithered twin: weights of a quantised model with noise of one quantisation step. Marked in the store.

A model that was quantised to 4 bits still holds 4 bits after it is stored in 16, so a 4-bit draft of it is nearly
lossless by construction. Its twin writes much the same text and holds 16 real bits: claims about 16-bit models are
measured on twins.
"""

from __future__ import annotations

import hashlib

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.weights.dtypes import from_float32, to_float32

BLOCK = 32
_CHUNK_WEIGHTS = 1 << 18


def dithered(bits: np.ndarray, *, dtype: str, name: str, seed: int) -> np.ndarray:
    """A matrix with uniform noise of one quantisation step added.

    The step is found for each block of 32 consecutive inputs of a row: the smallest gap between its distinct values
    (none when all are equal: no noise). The noise is uniform in [-step/2, step/2) and depends on `seed`, `name` and
    the place in the matrix alone, on any machine. The sum is rounded back to `dtype`.

    Args:
        bits: uint16 (out, in), raw bits.
        dtype: "float16" or "bfloat16".
        name: canonical name of the matrix.
        seed: 0 or larger.

    Returns:
        uint16 (out, in).
    """
    outputs, inputs = bits.shape
    random = np.random.Philox(key=_key(name, seed))
    result = np.empty((outputs, inputs), dtype=np.uint16)
    step = max(1, _CHUNK_WEIGHTS // inputs)
    for first in range(0, outputs, step):
        rows = slice(first, min(first + step, outputs))
        weights = to_float32(bits[rows], dtype)
        # A whole number of draws per row, so that the chunking above cannot show in the result.
        raw = random.random_raw((rows.stop - first) * -(-inputs // 2)).astype("<u8").view("<u4")
        noise = (raw.reshape(rows.stop - first, -1)[:, :inputs] >> np.uint32(8)).astype(np.float32)
        noise = noise * np.float32(2.0**-24) - np.float32(0.5)
        result[rows] = from_float32(weights + noise * _steps(weights), dtype)
    return result


def check_seed(seed: int | None) -> int | None:
    """`seed` itself.

    Raises:
        InvalidArgumentError: it is not a whole number from 0 to 2**63 - 1.
    """
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63):
        return seed
    raise InvalidArgumentError(f"the dither seed must be a whole number from 0 to 2**63 - 1, not {seed!r}")


def _key(name: str, seed: int) -> int:
    """128 bits that differ between matrices and seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")


def _steps(weights: np.ndarray) -> np.ndarray:
    """Quantisation step at every weight, float32, the shape of `weights` (rows, in)."""
    rows, inputs = weights.shape
    # The last block is filled up with copies of the last value, which add no gap.
    padded = np.pad(weights, ((0, 0), (0, -inputs % BLOCK)), mode="edge").reshape(rows, -1, BLOCK)
    gaps = np.diff(np.sort(padded, axis=-1), axis=-1)
    gaps[gaps == 0] = np.inf
    step = gaps.min(axis=-1)
    step[np.isinf(step)] = 0
    return np.repeat(step, BLOCK, axis=1)[:, :inputs]
