"""Which tiers of which inputs take part in a multiplication: the definition that every runtime follows, in NumPy.

No weights and no activations beyond the one row live here. A result depends on that row alone, so a token selects the
same tiers by itself and in a batch. The order is total and integer from the first comparison on, so equal float32
scores give equal results on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError


def weights_to_take(effort: float, total: int) -> int:
    """Smallest number of weights whose share of `total`, divided out in float64, is at least `effort`.

    Raises:
        InvalidArgumentError: `effort` is not above 0, or not a number.
    """
    if not effort > 0:
        raise InvalidArgumentError(f"effort must be a number above 0 and at most 1, not {effort!r}")
    if effort >= 1:
        return total
    # The product may be off by one either way after rounding; the share itself is what the definition names.
    count = max(1, math.ceil(effort * total) - 1)
    while count / total < effort:
        count += 1
    return count


def select_tiers(
    v: NDArray[np.float32], scores: NDArray[np.float32], tier_sizes: Sequence[int], *, effort: float
) -> NDArray[np.uint8]:
    """Number of tiers to take of every input, n(i), for one activation row.

    Tier k of input i scores `float32(|v[i]|) * scores[i, k]`, multiplied in float32. Tiers are taken by falling score,
    then rising tier, then rising input, until the share of weights taken reaches `effort`. Because `scores[i]` never
    rises with k and float32 multiplication is monotone, the tiers taken of an input are always its first n(i).

    Worked example: v = [2, -1], scores = [[3, 1], [4, 3]] and tier sizes (2, 2) score [[6, 2], [4, 3]]. At effort 0.5
    four of eight weights are taken, tiers (0, 0) and (1, 0), so n = [1, 1]; at 0.6 also (1, 1), so n = [1, 2].

    Args:
        v: (in,) float32 activation row, finite.
        scores: (in, K) float32, mean |w| of each tier; not negative, never rising along K.
        tier_sizes: K sizes, weights per bucket in each tier.
        effort: share of the matrix's weights to take, above 0; 1 or more takes everything.

    Returns:
        (in,) uint8, each 0 to K.

    Raises:
        InvalidArgumentError: shapes do not fit together, or `effort` is not above 0.

    Source: bucketMul, https://kolinko.github.io/effort/ ; tiers and prefixes are this project's (design, section 3).
    """
    inputs, tiers = scores.shape
    if v.shape != (inputs,) or len(tier_sizes) != tiers:
        raise InvalidArgumentError(
            f"selection needs v of shape ({inputs},) and {tiers} tier sizes for scores of shape {scores.shape}, "
            f"not {v.shape} and {len(tier_sizes)}"
        )
    bucket_size = sum(tier_sizes)
    target = weights_to_take(effort, inputs * bucket_size)
    if target == inputs * bucket_size:
        return np.full(inputs, tiers, np.uint8)
    keys = _order_keys(v, scores)
    last = _last_key(keys.ravel(), np.repeat(np.asarray(tier_sizes, np.int64), inputs), target)
    chosen: NDArray[np.uint8] = (keys <= last).sum(axis=0, dtype=np.uint8)
    return chosen


def _last_key(keys: NDArray[np.uint64], sizes: NDArray[np.int64], target: int) -> np.uint64:
    """Key of the tier with which the weights taken in ascending order of keys first reach `target`."""
    if (sizes == sizes[0]).all():
        count = -(-target // int(sizes[0]))  # equal tiers need no running sum, so no full sort either
        return np.uint64(np.partition(keys, count - 1)[count - 1])
    ordered = np.sort(keys)
    taken = np.cumsum(sizes[(ordered & np.uint64(0xFFFFFFFF)).astype(np.intp)])
    return np.uint64(ordered[np.searchsorted(taken, target)])


def _order_keys(v: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(K, in) keys, all different, whose ascending order is the order in which tiers are taken.

    High half: bits of the score, inverted (floats that are not negative order as their bits do). Low half: k * in + i.
    """
    score = np.ascontiguousarray((np.abs(v.astype(np.float32, copy=False))[:, None] * scores).T)
    rank = np.arange(score.size, dtype=np.uint64).reshape(score.shape)
    keys: NDArray[np.uint64] = ((~score.view(np.uint32)).astype(np.uint64) << np.uint64(32)) | rank
    return keys
