"""What a store in buckets holds, put in order on the device: exact weights, and the tier of every weight.

The same bits as `BucketedMatrix.dense_bits` and `tier_of_weight`, which sort on the host and take minutes for a large
model. All by whole numbers, so that every device gives the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specdec.weights.bucket import BucketedMatrix

_SLICE_WEIGHTS = 1 << 26  # that are put in order at a time: temporary arrays take about 16 bytes for each


def dense_bits(mx: Any, matrix: BucketedMatrix) -> Any:
    """Raw bits of a matrix, uint16 (in, out): `BucketedMatrix.inputs_bits` of all inputs.

    Args:
        mx: MLX.
        matrix: in buckets.
    """
    parts = []
    for part in _slices(matrix):
        tier, size = _tiers(mx, matrix, part), matrix.layout.bucket_size
        place = mx.zeros(tier.shape, dtype=mx.int32)
        first = 0
        for k, held in enumerate(matrix.values):
            here = tier == k
            place = mx.where(here, mx.cumsum(here.astype(mx.int32), axis=-1) + (first - 1), place)
            first += held.shape[-1]
        values = mx.concatenate([mx.array(held[part]) for held in matrix.values], axis=-1)
        dense = mx.take_along_axis(values, place, axis=-1).reshape(tier.shape[0], -1)
        parts.append(dense[:, : matrix.shape[0]])
        assert first == size
        mx.eval(parts[-1])
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=0)


def tier_of_weight(mx: Any, matrix: BucketedMatrix) -> Any:
    """Tier of every weight, uint8 (in, out).

    Args:
        mx: MLX.
        matrix: in buckets.
    """
    parts = [_tiers(mx, matrix, part).reshape(part.stop - part.start, -1) for part in _slices(matrix)]
    found = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=0)
    return found[:, : matrix.shape[0]].astype(mx.uint8)


def _tiers(mx: Any, matrix: BucketedMatrix, part: slice) -> Any:
    """Tiers of some inputs, int32 (inputs, buckets, bucket_size): a mask for every tier but the last."""
    inputs, buckets = part.stop - part.start, matrix.values[0].shape[1]
    size, last = matrix.layout.bucket_size, matrix.layout.num_tiers - 1
    tier = mx.full((inputs, buckets, size), last, dtype=mx.int32)
    shifts = mx.array(np.arange(8, dtype=np.uint8))
    for k, mask in enumerate(matrix.masks):
        held = mx.array(np.ascontiguousarray(mask[part]))[..., None] >> shifts & 1
        tier = mx.where(held.reshape(inputs, buckets, -1)[..., :size] != 0, k, tier)
    return tier


def _slices(matrix: BucketedMatrix) -> list[slice]:
    """Runs of inputs, so that temporary arrays stay bounded."""
    outputs, inputs = matrix.shape
    step = max(1, _SLICE_WEIGHTS // outputs)
    return [slice(first, min(first + step, inputs)) for first in range(0, inputs, step)]
