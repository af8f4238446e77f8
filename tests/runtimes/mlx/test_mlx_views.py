"""What the mlx runtime makes of a store on the device: the very bits that NumPy makes, on MLX's CPU backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specdec.runtimes.mlx.build_int4 import build_int4
from specdec.runtimes.mlx.pack import (
    LINE,
    pack_bucket,
    pack_dense,
    pack_int4,
    pack_stream_int4,
    padded,
    padded_int4,
    unpack_dense,
    unpack_stream_int4,
)
from specdec.runtimes.mlx.quant import pack_plain
from specdec.runtimes.mlx.unbucket import dense_bits, tier_of_weight
from specdec.runtimes.mlx.weights import Linear, lines_of
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.int4 import Int4View
from specdec.weights.layout import BucketLayout

mx: Any = pytest.importorskip("mlx.core")

CASES = [
    (33, 70, "float16", 16, (4, 4, 4, 4)),
    (256, 1023, "bfloat16", 16, (4, 4, 4, 4)),
    (7, 33, "float16", 16, (8, 8)),
    (130, 64, "bfloat16", 16, (1, 3, 12)),
    (96, 31, "float16", 32, (8, 8, 16)),
    (40, 97, "float16", 16, (16,)),
]


def bits_of(outputs: int, inputs: int, dtype: str) -> np.ndarray:
    """Weights of many magnitudes, with zeros, rows of zeros, denormals and the largest numbers."""
    rng = np.random.default_rng(outputs)
    weights = rng.standard_normal((outputs, inputs)) * np.exp(2 * rng.standard_normal((outputs, 1)))
    weights[rng.random(weights.shape) < 0.05] = 0
    weights[1], weights[2] = 0, weights[2] * 1e-6
    weights[3, ::7] = 65504 if dtype == "float16" else 3e30
    weights[4, ::2] = -weights[4, ::2].max()
    if dtype == "float16":
        return np.clip(weights, -65504, 65504).astype(np.float16).view(np.uint16)
    return (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def matrix_of(outputs: int, inputs: int, dtype: str, size: int, tiers: tuple[int, ...]) -> BucketedMatrix:
    return BucketedMatrix.from_dense(bits_of(outputs, inputs, dtype), dtype=dtype, layout=BucketLayout(size, tiers))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("slice_weights", [1 << 26, 200])
def test_weights_are_put_in_order(case, slice_weights, monkeypatch):
    monkeypatch.setattr("specdec.runtimes.mlx.unbucket._SLICE_WEIGHTS", slice_weights)
    matrix = matrix_of(*case)
    found = dense_bits(mx, matrix)
    assert found.dtype == mx.uint16
    assert np.array_equal(np.array(found), bits_of(*case[:3]).T)
    tiers = tier_of_weight(mx, matrix)
    assert tiers.dtype == mx.uint8
    assert np.array_equal(np.array(tiers), matrix.tier_of_weight()[:, : case[0]])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("slice_weights", [1 << 24, 32 * 300])
def test_the_int4_view_is_numpys(case, slice_weights, monkeypatch):
    monkeypatch.setattr("specdec.runtimes.mlx.build_int4._SLICE_WEIGHTS", slice_weights)
    matrix = matrix_of(*case)
    wanted: Any = Int4View().build(matrix)
    found = build_int4(mx, dense_bits(mx, matrix), case[2])
    assert np.array_equal(np.array(found.levels), wanted.levels() + 8)
    assert np.array_equal(np.array(found.scales).view(np.uint16), wanted.scale.view(np.uint16))
    # Sums in float32 instead of float64.
    np.testing.assert_allclose(np.array(found.scores), wanted.scores, rtol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(320, 200), (128, 64), (33, 130)])
def test_weights_that_flow_are_the_same_in_the_other_order(inputs, outputs):
    rng = np.random.default_rng(inputs)
    levels = mx.array(rng.integers(0, 16, (inputs, outputs)).astype(np.uint8))
    scales = mx.array(rng.standard_normal((-(-inputs // 32), outputs)).astype(np.float16))
    tiled = pack_int4(mx, "cuda", levels, scales, None)
    stream = pack_stream_int4(mx, *padded_int4(mx, levels, scales))
    back, back_scales = unpack_stream_int4(mx, stream, padded(inputs))
    again = pack_int4(mx, "cuda", back.T, back_scales, None)
    assert np.array_equal(again.levels, tiled.levels)
    assert np.array_equal(again.scales, tiled.scales)


@pytest.mark.parametrize(
    ("outputs", "paired"), [((96, 32, 32), False), ((200, 200), True), ((130,), False)], ids=["qkv", "gates", "one"]
)
@pytest.mark.parametrize("inputs", [96, 33])
def test_weights_of_an_input_lie_together(outputs, paired, inputs):
    parts = [bits_of(count, inputs, "float16") for count in outputs]
    linear = Linear(tuple(map(str, outputs)), outputs, inputs, paired)
    joined = linear.join(mx, [mx.array(part) for part in parts])
    linear.weights = pack_dense(mx, "cuda", joined, linear.rows)
    assert np.array_equal(np.array(unpack_dense(mx, linear.weights, linear.rows))[: linear.columns, :inputs], joined)
    lines = np.array(lines_of(mx, linear)).reshape(-1, padded(inputs), LINE)
    seen = [0] * len(outputs)
    for tile in range(len(lines)):
        which = tile % 2 if paired else next(n for n, part in enumerate(parts) if seen[n] < len(part))
        held = parts[which][seen[which] : seen[which] + LINE].T
        wanted = np.zeros((padded(inputs), LINE), np.uint16)
        wanted[:inputs, : held.shape[1]] = held
        assert np.array_equal(lines[tile], wanted)
        seen[which] += LINE
    assert all(count >= len(part) for count, part in zip(seen, parts, strict=True))


def test_bytes_of_large_vocabularies_are_more_than_32_bits_count(monkeypatch):
    """The logits layers of Gemma 3 12B and 27B; shapes alone, nothing is computed."""
    monkeypatch.setattr(mx, "eval", lambda *_: None)
    values, places = (mx.broadcast_to(mx.zeros((), mx.uint16), (4, 3840, 1 << 14, *more)) for more in ((4,), ()))
    assert pack_bucket(mx, values, places).shape == (1 << 10, 4, 3840, 160)
    plain = pack_plain(mx, mx.broadcast_to(mx.zeros((), mx.uint16), (1 << 18, 5376)), "bfloat16", None)
    assert plain.data.shape == (1 << 11, 5376, 256)
    assert plain.data.nbytes == 2 * (1 << 18) * 5376
