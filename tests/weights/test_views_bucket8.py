"""The bucket8 draft view: tiers, rounding, slices, and what a multiplication reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.errors import InvalidArgumentError, StoreError
from specdec.weights import bucket8
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.bucket8 import Bucket8Matrix, Bucket8View
from specdec.weights.dtypes import DTYPES, from_float32
from specdec.weights.layout import BucketLayout
from specdec.weights.registry import get_view

VIEW = Bucket8View()
STORE_LAYOUT = BucketLayout()
SHAPES = st.tuples(st.integers(1, 150), st.integers(1, 40))


def exact(shape: tuple[int, int], seed: int, *, dtype: str = "float16", scale: float = 1.0) -> BucketedMatrix:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return BucketedMatrix.from_dense(from_float32(values, dtype), dtype=dtype, layout=STORE_LAYOUT)


def test_is_registered() -> None:
    assert isinstance(get_view("bucket8"), Bucket8View)


@settings(max_examples=40, deadline=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-7, 1e-3, 1.0, 90.0]),
)
def test_rounds_to_half_a_step(shape: tuple[int, int], seed: int, dtype: str, scale: float) -> None:
    matrix = exact(shape, seed, dtype=dtype, scale=scale)
    weights, built = matrix.dequantise(), VIEW.build(matrix)
    np.testing.assert_array_equal(built.step, np.abs(weights).max(axis=0) / np.float32(127))
    # Half a step, and the rounding of float32 quotients and products (2^-24 of up to 127 steps, twice).
    assert (np.abs(built.dequantise() - weights) <= built.step * (0.5 + 2e-5)).all()


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32))
def test_tiers_are_those_of_buckets_of_64(shape: tuple[int, int], seed: int) -> None:
    matrix = exact(shape, seed)
    wide = BucketedMatrix.from_dense(matrix.dense_bits(), dtype=matrix.dtype, layout=bucket8.LAYOUT)
    built = VIEW.build(matrix)
    np.testing.assert_array_equal(built.tier_of_weight(), wide.tier_of_weight())
    np.testing.assert_array_equal(built.scores, wide.scores)
    assert built.tier_sizes == wide.tier_sizes


def test_zeros_stay_zeros() -> None:
    bits = np.zeros((70, 3), np.uint16)
    built = VIEW.build(BucketedMatrix.from_dense(bits, dtype="float16", layout=STORE_LAYOUT))
    assert not built.dequantise().any()


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32), data=st.data())
def test_slices_put_together_are_the_whole(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    matrix = exact(shape, seed)
    cut = data.draw(st.integers(0, shape[1]))
    whole = VIEW.arrays(VIEW.build(matrix))
    parts = []
    for first, last in ((0, cut), (cut, shape[1])):
        if first < last:
            bits = np.ascontiguousarray(matrix.dense_bits()[:, first:last])
            part = BucketedMatrix.from_dense(bits, dtype=matrix.dtype, layout=STORE_LAYOUT)
            parts.append(VIEW.arrays(VIEW.build(part)))
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))


def test_loads_what_it_stores() -> None:
    matrix = exact((100, 20), 1)
    built = VIEW.build(matrix)
    arrays = VIEW.arrays(built)
    for name, spec in VIEW.tensors(matrix.shape).items():
        assert (arrays[name].shape, arrays[name].nbytes) == (spec.shape, spec.nbytes)
    np.testing.assert_array_equal(VIEW.load(arrays, matrix).dequantise(), built.dequantise())
    with pytest.raises(StoreError, match="needs the arrays"):
        VIEW.load({name: array for name, array in arrays.items() if name != "step"}, matrix)
    with pytest.raises(StoreError, match="must be"):
        VIEW.load(arrays | {"step": arrays["step"][1:]}, matrix)
    with pytest.raises(InvalidArgumentError, match="Bucket8Matrix"):
        VIEW.arrays(matrix)


def test_bytes_read() -> None:
    built = VIEW.build(exact((100, 5), 2))
    assert isinstance(built, Bucket8Matrix)
    # Two buckets; 24 bytes for each of the first three tiers, 16 for the last, 4 for an input's step.
    assert built.bytes_read(np.array([0, 1, 2, 3, 4])) == 2 * (24 + 48 + 72 + 88) + 4 * 4
    assert built.nbytes == 5 * (2 * 88 + 4 + 16)
