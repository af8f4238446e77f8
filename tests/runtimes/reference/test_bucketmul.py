"""bucketMul and attention: the float64 references against first principles, the MLX versions against the references."""

from __future__ import annotations

import numpy as np
import pytest
from specdec.kernels.reference.attention import attention_row, attention_rows, first_visible
from specdec.kernels.reference.bucketmul import bucketmul, bucketmul_rows
from specdec.kernels.reference.selection import select_tiers

from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import from_float32
from specdec.weights.int4 import GROUP, Int4View
from specdec.weights.layout import BucketLayout

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

import mlx.core as mx
from specdec.kernels.reference import mlx_layers
from specdec.kernels.reference.mlx_backend import compute_device
from specdec.kernels.reference.mlx_matrix import FloatMatrix, GroupScaledMatrix, block_starts

SHAPES = [(1, 1), (7, 33), (33, 7), (96, 64), (257, 130), (40, 1023)]  # (out, in)
LAYOUTS = [BucketLayout(), BucketLayout(8, (8,)), BucketLayout(64, (8, 8, 16, 16, 16))]
EFFORTS = (0.1, 0.3, 0.6, 1.0)


def bucketed(shape: tuple[int, int], layout: BucketLayout, *, dtype: str = "float16", seed: int = 0) -> BucketedMatrix:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return BucketedMatrix.from_dense(from_float32(values, dtype), dtype=dtype, layout=layout)


def activation(size: int, *, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def error_bound(v: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Most that a float32 sum of n products, in any order, may be off: about n rounding steps of sum |v w| (Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1). weights (in, out)."""
    terms = np.abs(v.astype(np.float64)) @ np.abs(weights.astype(np.float64))
    return (len(v) + 1) * np.finfo(np.float32).eps * terms


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_bucketmul_sums_exactly_the_selected_products(shape: tuple, layout: BucketLayout, dtype: str) -> None:
    matrix = bucketed(shape, layout, dtype=dtype)
    weights, tiers, v = matrix.dequantise().T, matrix.tier_of_weight()[:, : shape[0]], activation(shape[1])
    for effort in EFFORTS:
        prefix = select_tiers(v, matrix.scores, matrix.tier_sizes, effort=effort)
        expected = np.zeros(shape[0])
        for i, o in np.ndindex(weights.shape):
            if tiers[i, o] < prefix[i]:
                expected[o] += float(v[i]) * float(weights[i, o])
        # Two float64 sums of at most 1023 terms of size about 1, in different orders.
        np.testing.assert_allclose(bucketmul(v, weights, tiers, prefix), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_bucketmul_at_effort_one_is_dense(shape: tuple) -> None:
    matrix = bucketed(shape, BucketLayout())
    weights, tiers, v = matrix.dequantise().T, matrix.tier_of_weight()[:, : shape[0]], activation(shape[1])
    prefix = select_tiers(v, matrix.scores, matrix.tier_sizes, effort=1.0)
    dense = v.astype(np.float64) @ np.ascontiguousarray(weights, np.float64)
    assert np.array_equal(bucketmul(v, weights, tiers, prefix), dense)


def test_float64_rows_equal_single_rows() -> None:
    matrix = bucketed((70, 33), BucketLayout())
    weights, tiers = matrix.dequantise().T, matrix.tier_of_weight()[:, :70]
    rows = np.random.default_rng(2).standard_normal((9, 33), dtype=np.float32)
    prefixes = np.stack([select_tiers(row, matrix.scores, matrix.tier_sizes, effort=0.4) for row in rows])
    together = bucketmul_rows(rows, weights, tiers, prefixes)
    for m in range(9):
        assert np.array_equal(together[m], bucketmul(rows[m], weights, tiers, prefixes[m]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mlx_bucketmul_against_float64(shape: tuple, layout: BucketLayout) -> None:
    matrix = bucketed(shape, layout)
    weights, tiers, v = matrix.dequantise().T, matrix.tier_of_weight()[:, : shape[0]], activation(shape[1])
    with mx.stream(compute_device()):
        device, row = FloatMatrix(matrix.dequantise()), mx.array(v[None])
        device.set_tiers(matrix.tier_of_weight())
        for effort in EFFORTS:
            prefix = select_tiers(v, matrix.scores, matrix.tier_sizes, effort=effort)
            expected, bound = bucketmul(v, weights, tiers, prefix), error_bound(v, weights)
            for result in (device.masked(row, prefix), device.selected(row, prefix)):
                assert (np.abs(np.array(result)[0] - expected) <= bound).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mlx_masked_at_effort_one_equals_dense_bit_for_bit(shape: tuple) -> None:
    matrix = bucketed(shape, BucketLayout())
    everything = np.full(shape[1], 4, np.uint8)
    with mx.stream(compute_device()):
        device, row = FloatMatrix(matrix.dequantise()), mx.array(activation(shape[1])[None])
        device.set_tiers(matrix.tier_of_weight())
        assert np.array_equal(np.array(device.masked(row, everything)), np.array(device.dense(row)))


def test_mlx_masked_without_tiers_takes_whole_inputs() -> None:
    weights, v = np.random.default_rng(3).standard_normal((20, 12), dtype=np.float32), activation(12)
    prefix = (np.arange(12) % 3 == 0).astype(np.uint8)
    with mx.stream(compute_device()):
        result = np.array(FloatMatrix(weights).masked(mx.array(v[None]), prefix))[0]
    kept = v * prefix
    assert (np.abs(result - kept.astype(np.float64) @ weights.T) <= error_bound(kept, weights.T)).all()


def test_blocks_of_outputs_do_not_change_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, v = bucketed((300, 33), BucketLayout()), activation(33)
    prefix = select_tiers(v, matrix.scores, matrix.tier_sizes, effort=0.4)
    results = []
    with mx.stream(compute_device()):
        for limit in (4 << 20, 33 * 64):
            monkeypatch.setattr("specdec.kernels.reference.mlx_matrix._BLOCK_WEIGHTS", limit)
            device, row = FloatMatrix(matrix.dequantise()), mx.array(v[None])
            device.set_tiers(matrix.tier_of_weight())
            outputs = [device.dense(row), device.masked(row, prefix), device.selected(row, prefix)]
            outputs += [mx.concatenate([device.column(o) for o in (0, 63, 64, 299)])]
            results.append([np.array(output) for output in outputs])
    assert len(block_starts(33, 300)) == 5
    assert all(np.array_equal(whole, cut) for whole, cut in zip(*results, strict=True))
    assert np.array_equal(results[0][3], matrix.dequantise()[[0, 63, 64, 299]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mlx_int4_against_float64(shape: tuple) -> None:
    matrix, v = Int4View().build(bucketed(shape, BucketLayout())), activation(shape[1])
    weights = matrix.dequantise().T
    tiers = np.zeros(weights.shape, np.uint8)
    with mx.stream(compute_device()):
        device, row = GroupScaledMatrix(matrix.levels(), matrix.scale, GROUP), mx.array(v[None])
        for effort in EFFORTS:
            prefix = select_tiers(v, matrix.scores, matrix.tier_sizes, effort=effort)
            expected, bound = bucketmul(v, weights, tiers, prefix), error_bound(v, weights)
            assert (np.abs(np.array(device.selected(row, prefix))[0] - expected) <= bound).all()
        everything = np.ones(shape[1], np.uint8)
        assert np.array_equal(np.array(device.dense(row)), np.array(device.selected(row, everything)))


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "size", "length"), [(1, 1, 2, 1), (4, 2, 8, 7), (9, 3, 16, 33)])
def test_float64_attention_is_the_textbook_sum(
    heads: int, kv_heads: int, size: int, length: int, window: int | None
) -> None:
    rng = np.random.default_rng(4)
    query, keys, values = (
        rng.standard_normal(s) for s in ((heads, size), (kv_heads, length, size), (kv_heads, length, size))
    )
    result = attention_row(query, keys, values, window=window)
    for head in range(heads):
        group = head // (heads // kv_heads)
        seen = [t for t in range(length) if window is None or length - 1 - t < window]
        weights = np.array([np.exp(query[head] @ keys[group, t] / np.sqrt(size)) for t in seen])
        expected = sum(w * values[group, t] for w, t in zip(weights / weights.sum(), seen, strict=True))
        # float64 against float64; scores stay below 20, so the plain exponentials lose no more than a few places.
        np.testing.assert_allclose(result[head], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_rows_equal_single_rows(window: int | None) -> None:
    rng = np.random.default_rng(5)
    queries, keys, values = (rng.standard_normal(s) for s in ((4, 6, 8), (2, 11, 8), (2, 11, 8)))
    together = attention_rows(queries, keys, values, window=window)
    for m in range(4):
        length = 11 - 4 + m + 1
        assert np.array_equal(
            together[m], attention_row(queries[m], keys[:, :length], values[:, :length], window=window)
        )


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("length", [1, 7, 33, 200])
def test_mlx_attention_against_float64(length: int, window: int | None) -> None:
    rng = np.random.default_rng(6)
    query, keys, values = (
        rng.standard_normal(s, dtype=np.float32) for s in ((6, 16), (2, length, 16), (2, length, 16))
    )
    start = first_visible(length - 1, window)
    with mx.stream(compute_device()):
        result = mlx_layers.attend(mx.array(query), mx.array(keys[:, start:]), mx.array(values[:, start:]))
        result = np.array(result).reshape(6, 16)
    expected = attention_row(query, keys, values, window=window)
    # A score is a sum of D products, so off by at most D + 2 roundings of sum |q k|; that is the relative error of its
    # exponential, which enters a weight twice (once through the sum); the last sum adds one rounding a position.
    eps, size = np.finfo(np.float32).eps, np.abs(values).max()
    sums = np.einsum("kgd,ktd->kgt", np.abs(query.reshape(2, 3, 16)), np.abs(keys)).max() / 4
    bound = (2 * (16 + 2) * eps * sums + (length + 4) * eps) * size
    np.testing.assert_allclose(result, expected, rtol=0, atol=bound)
