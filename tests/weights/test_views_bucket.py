"""The exact view: round trip, ranks, tiers, scores, and what a multiplication reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import DTYPES, all_finite, from_float32, to_float32
from specdec.weights.layout import BucketLayout

LAYOUTS = [
    BucketLayout(),
    BucketLayout(64, (8,) * 8),
    BucketLayout(16, (2, 2, 4, 8)),
    BucketLayout(8, (8,)),
    BucketLayout(24, (1, 22, 1)),
    BucketLayout(64, (1,) * 64),
]
# What rounding and ordering get wrong first: both zeros, the smallest and largest subnormals, one, the largest number.
EDGES = {
    "float16": [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF],
    "bfloat16": [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F],
}


def random_bits(shape: tuple[int, int], dtype: str, seed: int, *, levels: int | None = None) -> np.ndarray:
    """Random finite weights; with `levels` so few distinct ones that most ranks are ties."""
    rng = np.random.default_rng(seed)
    if levels is not None:
        return rng.choice(np.array(EDGES[dtype], dtype=np.uint16)[:levels], size=shape)
    bits = from_float32(rng.standard_normal(shape, dtype=np.float32), dtype)
    where = rng.random(shape) < 0.1
    bits[where] = rng.choice(np.array(EDGES[dtype], dtype=np.uint16), size=int(where.sum()))
    return bits


def plain_tiers(column: np.ndarray, layout: BucketLayout) -> tuple[list[list[list[int]]], np.ndarray]:
    """Outputs of every tier of every bucket of one input, straight from the definition, and the padded column."""
    padded = np.zeros(layout.buckets(len(column)) * layout.bucket_size, dtype=np.uint16)
    padded[: len(column)] = column
    tiers = []
    for start in range(0, len(padded), layout.bucket_size):
        ranked = sorted(range(layout.bucket_size), key=lambda j: (-int(padded[start + j] & 0x7FFF), j))
        rank, bucket = 0, []
        for size in layout.tier_sizes:
            bucket.append(sorted(ranked[rank : rank + size]))
            rank += size
        tiers.append(bucket)
    return tiers, padded


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 70)),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([None, 1, 2, 5]),
)
def test_round_trip(shape: tuple[int, int], layout: BucketLayout, dtype: str, seed: int, levels: int | None) -> None:
    bits = random_bits(shape, dtype, seed, levels=levels)
    matrix = BucketedMatrix.from_dense(bits, dtype=dtype, layout=layout)
    np.testing.assert_array_equal(matrix.dense_bits(), bits)
    assert matrix.dense_bits().flags.c_contiguous
    np.testing.assert_array_equal(matrix.inputs_bits(), bits.T)
    middle = shape[1] // 2
    np.testing.assert_array_equal(matrix.inputs_bits(middle), bits[:, middle:].T)


@pytest.mark.parametrize("inputs", [1, 7, 33, 1023])
@pytest.mark.parametrize("outputs", [1, 7, 33, 1023])
def test_round_trip_of_odd_sizes(outputs: int, inputs: int) -> None:
    for dtype in DTYPES:
        bits = random_bits((outputs, inputs), dtype, outputs * inputs)
        matrix = BucketedMatrix.from_dense(bits, dtype=dtype, layout=BucketLayout())
        np.testing.assert_array_equal(matrix.dense_bits(), bits)


def test_input_may_be_non_contiguous() -> None:
    bits = random_bits((66, 90), "float16", 0)
    for view in (bits.T, bits[::2, ::3], bits[::-1, ::-1], np.asfortranarray(bits)):
        matrix = BucketedMatrix.from_dense(view, dtype="float16", layout=BucketLayout())
        np.testing.assert_array_equal(matrix.dense_bits(), view)


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 100),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([None, 2, 5]),
)
def test_tiers_follow_the_definition(
    outputs: int, layout: BucketLayout, dtype: str, seed: int, levels: int | None
) -> None:
    bits = random_bits((outputs, 3), dtype, seed, levels=levels)
    matrix = BucketedMatrix.from_dense(bits, dtype=dtype, layout=layout)
    tier_of_weight = matrix.tier_of_weight().reshape(3, -1, layout.bucket_size)
    for i in range(3):
        tiers, padded = plain_tiers(bits[:, i], layout)
        for b, bucket in enumerate(tiers):
            for k, members in enumerate(bucket):
                found = padded[[b * layout.bucket_size + j for j in members]]
                np.testing.assert_array_equal(matrix.values[k][i, b], found)
                assert set(np.flatnonzero(tier_of_weight[i, b] == k)) == set(members)
                if k < layout.num_tiers - 1:
                    mask = int.from_bytes(matrix.masks[k][i, b].tobytes(), "little")
                    assert mask == sum(1 << j for j in members)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 200), st.integers(1, 40)),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([None, 1, 3, 9]),
)
def test_scores_are_means_and_never_increase(
    shape: tuple[int, int], layout: BucketLayout, dtype: str, seed: int, levels: int | None
) -> None:
    matrix = BucketedMatrix.from_dense(random_bits(shape, dtype, seed, levels=levels), dtype=dtype, layout=layout)
    assert matrix.scores.dtype == np.float32
    assert (np.diff(matrix.scores, axis=1) <= 0).all()
    for k, values in enumerate(matrix.values):
        mean = np.abs(to_float32(values, dtype).astype(np.float64)).reshape(shape[1], -1).mean(axis=1)
        # The mean is rounded once to float32: half a unit in the last place, 2**-24, and as much again where two
        # equal means had to be put in order; subnormal float32 has an absolute step of 2**-149.
        np.testing.assert_allclose(matrix.scores[:, k], mean, rtol=2**-23, atol=2**-148)


def test_size_of_the_default_layout() -> None:
    matrix = BucketedMatrix.from_dense(random_bits((576, 192), "float16", 0), dtype="float16", layout=BucketLayout())
    dense = 2 * 576 * 192
    # Three masks of one bit a weight on 16 bits, and four float32 scores for the 576 weights of an input.
    assert matrix.nbytes == dense + 3 * dense // 16 + 192 * 4 * 4
    assert matrix.nbytes <= 1.25 * dense


@given(seed=st.integers(0, 2**32), layout=st.sampled_from(LAYOUTS))
@settings(max_examples=20, deadline=None)
def test_bytes_read(seed: int, layout: BucketLayout) -> None:
    outputs, inputs = 50, 11
    matrix = BucketedMatrix.from_dense(random_bits((outputs, inputs), "float16", seed), dtype="float16", layout=layout)
    prefix = np.random.default_rng(seed).integers(0, layout.num_tiers + 1, size=inputs)
    prefix[0] = 0
    expected = 0
    for i, taken in enumerate(prefix):
        expected += sum(matrix.values[k][i].nbytes for k in range(taken))
        expected += sum(mask[i].nbytes for mask in matrix.masks[:taken])
    assert matrix.bytes_read(prefix.astype(np.uint8)) == expected
    assert matrix.bytes_read(np.full(inputs, layout.num_tiers, dtype=np.uint8)) == 2 * outputs * inputs
    assert matrix.bytes_read(np.zeros(inputs, dtype=np.uint8)) == 0


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 0x7C00), ("float16", 0xFE00), ("bfloat16", 0xFF80)])
def test_refuses_what_is_not_finite(dtype: str, bits: int) -> None:
    dense = np.zeros((20, 70), dtype=np.uint16)
    dense[19, 69] = bits
    with pytest.raises(ModelFormatError, match="infinite weight or a NaN"):
        BucketedMatrix.from_dense(dense, dtype=dtype, layout=BucketLayout())


def test_refuses_what_is_no_matrix() -> None:
    for wrong in (np.zeros(3, np.uint16), np.zeros((2, 2), np.float16), np.zeros((0, 2), np.uint16)):
        with pytest.raises(InvalidArgumentError):
            BucketedMatrix.from_dense(wrong, dtype="float16", layout=BucketLayout())
    with pytest.raises(InvalidArgumentError, match="float16, bfloat16"):
        BucketedMatrix.from_dense(np.zeros((2, 2), np.uint16), dtype="float32", layout=BucketLayout())


def test_refuses_arrays_of_another_shape() -> None:
    matrix = BucketedMatrix.from_dense(random_bits((20, 5), "float16", 1), dtype="float16", layout=BucketLayout())
    arrays = matrix.arrays()
    arrays["tier1.mask"] = arrays["tier1.mask"][:4]
    with pytest.raises(InvalidArgumentError, match=r"tier1\.mask"):
        BucketedMatrix.from_arrays(arrays, shape=(20, 5), dtype="float16", layout=BucketLayout())


@pytest.mark.parametrize(
    ("size", "tiers"),
    [
        (16, (4, 4)),
        (12, (12,)),
        (72, (72,)),
        (16, (16, 0)),
        (16, ()),
        (0, ()),
        (16, (8.0, 8)),
        (16, "88"),
        (True, (1,)),
    ],
)
def test_refuses_a_layout_that_does_not_fit(size: int, tiers: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        BucketLayout(size, tiers)


def test_layout_survives_json() -> None:
    for layout in LAYOUTS:
        assert BucketLayout.from_dict(layout.to_dict()) == layout
    with pytest.raises(InvalidArgumentError):
        BucketLayout.from_dict({"bucket_size": 16})


def test_every_float16_and_bfloat16_survives_float32() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype in DTYPES:
        values = to_float32(every, dtype)
        back = from_float32(values, dtype)
        number = ~np.isnan(values)
        np.testing.assert_array_equal(back[number], every[number])
        assert np.isnan(to_float32(back[~number], dtype)).all()
        finite = np.array([all_finite(every[i : i + 1], dtype) for i in range(0, 1 << 16, 7)])
        np.testing.assert_array_equal(finite, np.isfinite(values[::7]))


def test_bfloat16_rounds_to_nearest_even() -> None:
    for value, expected in [
        (0x3F808000, 0x3F80),  # halfway, the lower is even
        (0x3F818000, 0x3F82),  # halfway, the upper is even
        (0x3F808001, 0x3F81),
        (0x3F807FFF, 0x3F80),
        (0x7F7FFFFF, 0x7F80),  # beyond the largest finite number
        (0xFFFFFFFF, 0xFFFF),  # a NaN that plain rounding would turn into zero
    ]:
        found = from_float32(np.array([value], dtype=np.uint32).view(np.float32), "bfloat16")
        assert found[0] == expected, hex(value)
