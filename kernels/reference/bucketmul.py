"""bucketMul in float64 NumPy: what every kernel's result is compared with. Choosing the tiers is in `selection`.

Weights are held as (in, out), one row per input, as the bucket store and all kernels see them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kept_weights(
    weights: NDArray[np.floating], tiers: NDArray[np.uint8], prefix: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Weights with those outside the selection set to +0.

    Args:
        weights: (in, out), any float dtype.
        tiers: (in, out) uint8, tier of each weight within its bucket.
        prefix: (in,) uint8, number of tiers taken of each input.

    Returns:
        (in, out) float64.
    """
    return np.where(tiers < prefix[:, None], weights.astype(np.float64), 0.0)


def bucketmul(
    v: NDArray[np.floating], weights: NDArray[np.floating], tiers: NDArray[np.uint8], prefix: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """One row times the selected weights: y[o] = sum over i of v[i] * weights[i, o] where tiers[i, o] < prefix[i].

    Args:
        v: (in,), any float dtype.
        weights: (in, out), any float dtype.
        tiers: (in, out) uint8, tier of each weight within its bucket.
        prefix: (in,) uint8 from `selection.select_tiers`.

    Returns:
        (out,) float64.

    Source: bucketMul, https://kolinko.github.io/effort/
    """
    return np.asarray(v.astype(np.float64) @ kept_weights(weights, tiers, prefix))


def bucketmul_rows(
    rows: NDArray[np.floating], weights: NDArray[np.floating], tiers: NDArray[np.uint8], prefixes: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """M rows, each with its own selection; row m is `bucketmul` of that row, bit for bit, whatever M is.

    Args:
        rows: (M, in), any float dtype.
        weights: (in, out).
        tiers: (in, out) uint8.
        prefixes: (M, in) uint8.

    Returns:
        (M, out) float64.
    """
    result = np.empty((len(rows), weights.shape[1]), np.float64)
    for m, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
        result[m] = bucketmul(row, weights, tiers, prefix)
    return result
