"""Weights in the order in which the GPU kernels read them. Each function names the kernel file whose order it makes.

All take and give `mx.array`s, so that packing runs on the GPU where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from specdec.weights.bucket import BucketedMatrix
from specdec.weights.int4 import GROUP, Int4Matrix

INPUT_STEP = 128  # inputs are padded with zeros to a multiple of it
RUN = 4  # weights of a bucket that one record of bucketMul holds
BUCKET = 16  # the bucket size that the bucketMul kernel knows
BUCKET_TILE = 256  # outputs that a block of the bucketMul kernel makes
LINE = 128  # outputs to which an input's weights lie together, for `step_inputs`
INT4_TILE = {"cuda": 128, "metal": 256}


def padded(count: int, step: int = INPUT_STEP) -> int:
    """`count` rounded up to a multiple of `step`."""
    return -(-count // step) * step


def pad(mx: Any, array: Any, shape: tuple[int, ...], value: int = 0) -> Any:
    """`array` with every axis filled up to `shape`."""
    if array.shape == shape:
        return array
    widths = [(0, want - have) for want, have in zip(shape, array.shape, strict=True)]
    return mx.pad(array, widths, constant_values=mx.array(value, array.dtype))


def _lanes(array: Any) -> Any:
    """(out, in) to (tiles, steps, product, g, q, pair of inputs, half of the tile, input of the pair): `dense.cu`."""
    outputs, inputs = array.shape
    split = array.reshape(outputs // 16, 2, 8, inputs // 32, 4, 2, 2, 2)
    return split.transpose(0, 3, 5, 2, 4, 6, 1, 7)


def pack_dense(mx: Any, backend: str, bits: Any, outputs: int) -> Any:
    """16-bit weights for `dense` and `verify`.

    Args:
        mx: MLX.
        backend: "cuda" orders them by the registers of the tensor cores, "metal" keeps rows.
        bits: (out, in), any 16-bit type.
        outputs: rows to pad to.
    """
    bits = pad(mx, bits, (outputs, padded(bits.shape[1])))
    return mx.contiguous(_lanes(bits)).reshape(-1) if backend == "cuda" else mx.contiguous(bits)


def pack_lines(mx: Any, bits: Any) -> Any:
    """16-bit weights for `step_inputs`: (tiles of `LINE` outputs, padded in, LINE), flat.

    Args:
        mx: MLX.
        bits: (out, in), any 16-bit type.
    """
    outputs, inputs = padded(bits.shape[0], LINE), padded(bits.shape[1])
    tiles = pad(mx, bits, (outputs, inputs)).reshape(outputs // LINE, LINE, inputs)
    return mx.contiguous(tiles.transpose(0, 2, 1)).reshape(-1)


def unpack_dense(mx: Any, packed: Any, outputs: int) -> Any:
    """Undo `pack_dense` for CUDA: (outputs, padded in), outputs as padded there."""
    lanes = packed.reshape(outputs // 16, -1, 2, 8, 4, 2, 2, 2)
    return mx.contiguous(lanes.transpose(0, 6, 3, 1, 4, 2, 5, 7)).reshape(outputs, -1)


def pack_tiers(mx: Any, backend: str, tiers: Any, outputs: int) -> Any:
    """Two bits a weight for `verify`: uint32 for every lane (cuda), uint8 (out, in / 4) (metal).

    On CUDA bit 7 - r of byte 2 b + p is bit b of the tier of place p of register r: shifted by r, it is a byte's sign.

    Args:
        mx: MLX.
        backend: "cuda" or "metal".
        tiers: uint8 (out, in), 0 to 3.
        outputs: rows to pad to.
    """
    tiers = pad(mx, tiers, (outputs, padded(tiers.shape[1])))
    if backend == "metal":
        quads = tiers.reshape(outputs, -1, 4)
        return quads[..., 0] | (quads[..., 1] << 2) | (quads[..., 2] << 4) | (quads[..., 3] << 6)
    lanes = _lanes(tiers).transpose(0, 1, 3, 4, 2, 5, 6, 7)  # one word for every lane and step
    words = mx.zeros(lanes.shape[:4], dtype=mx.uint32)
    for product in range(2):
        for pair in range(2):
            for half in range(2):
                register = product * 4 + pair * 2 + half
                for place in range(2):
                    part = lanes[:, :, :, :, product, pair, half, place].astype(mx.uint32)
                    low, high = part & mx.array(1, mx.uint32), part >> mx.array(1, mx.uint32)
                    words = words | (low << mx.array(7 - register + 8 * place, mx.uint32))
                    words = words | (high << mx.array(23 - register + 8 * place, mx.uint32))
    return mx.contiguous(words).reshape(-1)


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """A matrix for `int4`, in one order or in both.

    Attributes:
        levels: uint8, nibbles; None in the other order.
        scales: float16; None in the other order.
        scores: float32 (in, 1); of a mixture (experts, in, 1).
        stream: for steps that 4-bit weights flow through: `pack_stream_int4`.
    """

    levels: Any
    scales: Any
    scores: Any
    stream: Any = None


def pack_int4(mx: Any, backend: str, levels: Any, scales: Any, scores: Any) -> PackedInt4:
    """4-bit weights for `int4`.

    Args:
        mx: MLX.
        backend: "cuda" or "metal".
        levels: uint8 (in, out), 0 to 15.
        scales: float16 (ceil(in / 32), out).
        scores: float32 (in, 1).
    """
    tile = INT4_TILE[backend]
    inputs, outputs = padded(levels.shape[0]), padded(levels.shape[1], tile)
    levels = pad(mx, levels, (inputs, outputs), 8)
    scales = pad(mx, scales, (inputs // GROUP, outputs))
    if backend == "cuda":
        nibbles = levels.reshape(inputs, outputs // 128, 16, 8).transpose(1, 0, 3, 2)
        scales = scales.reshape(inputs // 128, 4, outputs // 128, 2, 4, 2, 8).transpose(2, 0, 3, 6, 1, 4, 5)
    else:
        nibbles = levels.reshape(inputs, outputs // tile, tile).transpose(1, 0, 2)
    packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return PackedInt4(mx.contiguous(packed).reshape(-1), mx.contiguous(scales).reshape(-1), scores)


def unpack_int4(mx: Any, packed: PackedInt4, inputs: int) -> tuple[Any, Any]:
    """Undo `pack_int4` for CUDA: levels uint8 (out, in), 0 to 15, and scales float16 (in / 32, out).

    Args:
        mx: MLX.
        packed: a packed matrix.
        inputs: number of inputs, padded.
    """
    pairs = packed.levels.reshape(-1, inputs, 8, 8)
    both = mx.stack([pairs & mx.array(15, mx.uint8), pairs >> mx.array(4, mx.uint8)], axis=-1)
    levels = both.reshape(-1, inputs, 8, 16).transpose(0, 3, 2, 1).reshape(-1, inputs)
    parts = packed.scales.reshape(-1, inputs // 128, 2, 8, 4, 4, 2).transpose(1, 4, 0, 2, 5, 6, 3)
    return levels, parts.reshape(inputs // GROUP, -1)


def padded_int4(mx: Any, levels: Any, scales: Any) -> tuple[Any, Any]:
    """Levels (in, out) and scales (ceil(in / 32), out) as `pack_stream_int4` takes them."""
    inputs, outputs = padded(levels.shape[0]), padded(levels.shape[1], 16)
    return pad(mx, levels, (inputs, outputs), 8).T, pad(mx, scales, (inputs // GROUP, outputs))


def pack_stream_int4(mx: Any, levels: Any, scales: Any) -> Any:
    """4-bit weights as `stream.cuh` reads them: uint32 (tiles of 16 outputs, steps of 256 inputs, 576), flat.

    Args:
        mx: MLX.
        levels: uint8 (out, in), 0 to 15; `out` is a multiple of 16, `in` of 32.
        scales: float16 (in / 32, out).
    """
    outputs, wide = levels.shape[0], padded(levels.shape[1], 256)
    levels = pad(mx, levels, (outputs, wide), 8)
    scales = pad(mx, scales, (wide // GROUP, outputs))
    lanes = _lanes(levels)
    words = mx.zeros(lanes.shape[:5], dtype=mx.uint32)
    for pair in range(2):
        for half in range(2):
            for place in range(2):
                part = lanes[..., pair, half, place].astype(mx.uint32)
                words = words | (part << mx.array(4 * (2 * pair + half) + 16 * place, mx.uint32))
    tiles, steps = outputs // 16, wide // 256
    words = words.reshape(tiles, steps, 4, 2, 2, 8, 4).transpose(0, 1, 2, 5, 6, 3, 4).reshape(tiles, steps, 512)
    each = scales.reshape(steps, 4, 2, tiles, 2, 8).transpose(3, 0, 5, 1, 4, 2)
    each = mx.contiguous(each).reshape(tiles, steps, 128).view(mx.uint32)
    return mx.contiguous(mx.concatenate([words, each], axis=-1)).reshape(-1)


def unpack_stream_int4(mx: Any, stream: Any, inputs: int) -> tuple[Any, Any]:
    """Undo `pack_stream_int4`: levels uint8 (out, in), 0 to 15, and scales float16 (in / 32, out).

    Args:
        mx: MLX.
        stream: packed weights.
        inputs: number of inputs, a multiple of 32.
    """
    steps = padded(inputs, 256) // 256
    both = stream.reshape(-1, steps, 576)
    tiles = both.shape[0]
    words = both[..., :512].reshape(tiles, steps, 4, 8, 4, 2, 2).transpose(0, 1, 2, 5, 6, 3, 4)
    words = words.reshape(tiles, steps * 8, 2, 8, 4)
    parts = [
        (words >> mx.array(4 * (2 * pair + half) + 16 * place, mx.uint32)) & mx.array(15, mx.uint32)
        for pair in range(2) for half in range(2) for place in range(2)
    ]  # fmt: skip
    lanes = mx.stack(parts, axis=-1).astype(mx.uint8).reshape(tiles, steps * 8, 2, 8, 4, 2, 2, 2)
    levels = lanes.transpose(0, 6, 3, 1, 4, 2, 5, 7).reshape(tiles * 16, steps * 256)
    scales = mx.contiguous(both[..., 512:]).view(mx.float16).reshape(tiles, steps, 8, 4, 2, 2)
    scales = scales.transpose(1, 3, 5, 0, 4, 2).reshape(steps * 8, tiles * 16)
    return levels[:, :inputs], scales[: inputs // GROUP]


def int4_parts(matrix: Int4Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Levels uint8 (in, out), 0 to 15, and scales float16 (groups, out)."""
    return (matrix.levels() + np.int8(8)).astype(np.uint8), np.ascontiguousarray(matrix.scale)


def bucket_parts(matrix: BucketedMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Runs of a matrix in buckets of 16: values uint16 (runs, in, buckets, 4), positions uint16 (runs, in, buckets)."""
    inputs, buckets = matrix.values[0].shape[:2]
    values = np.empty((BUCKET // RUN, inputs, buckets, RUN), np.uint16)
    places = np.empty((BUCKET // RUN, inputs, buckets), np.uint16)
    rest = np.ones((inputs, buckets, BUCKET), bool)
    run = 0
    for k, held in enumerate(matrix.values):
        if k < len(matrix.masks):
            mask = np.unpackbits(matrix.masks[k], axis=-1, bitorder="little").view(bool)
            rest &= ~mask
        else:
            mask = rest
        positions = np.nonzero(mask.reshape(-1, BUCKET))[1].reshape(inputs, buckets, -1).astype(np.uint16)
        for first in range(0, held.shape[-1], RUN):
            values[run] = held[..., first : first + RUN]
            four = positions[..., first : first + RUN]
            places[run] = four[..., 0] | (four[..., 1] << 4) | (four[..., 2] << 8) | (four[..., 3] << 12)
            run += 1
    return values, places


def pack_bucket(mx: Any, values: Any, places: Any) -> Any:
    """Records for `bucket`, the same for both backends: uint8 (tiles, runs, padded in, 160).

    A record has 16 lanes of four 16-bit values and of four 4-bit positions. Records are not flat: the logits layer of a
    large vocabulary has more than 2^31 bytes of them, and MLX counts an axis in 32 bits.

    Args:
        mx: MLX.
        values: uint16 (runs, in, buckets, 4).
        places: uint16 (runs, in, buckets).
    """
    runs, inputs, buckets, _ = values.shape
    lanes, rows = BUCKET_TILE // BUCKET, padded(inputs)
    tiles = -(-buckets // lanes)
    values = pad(mx, values, (runs, rows, tiles * lanes, RUN)).reshape(runs, rows, tiles, lanes * RUN)
    places = pad(mx, places, (runs, rows, tiles * lanes), 0x3210).reshape(runs, rows, tiles, lanes)
    both = mx.concatenate([values, places], axis=-1).transpose(2, 0, 1, 3)
    return mx.contiguous(both).view(mx.uint8)
