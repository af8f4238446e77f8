"""Quantised matrices: weights against the gguf package and MLX, bit for bit, on random blocks of every type."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.weights.affine import AFFINE_TYPES, AffineType
from specdec.weights.dtypes import from_float32, to_float32
from specdec.weights.gguf_blocks import BLOCK_TYPES
from specdec.weights.quantised import QuantisedMatrix, QuantisedTable, quantised_type, quantised_types

BLOCK_NAMES = [kind.name for kind in BLOCK_TYPES]
AFFINE_NAMES = [kind.name for kind in AFFINE_TYPES]
# Where the float16 numbers of a block lie.
HALVES = {"q4_1": (0, 2), "q5_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}


def random_blocks(name: str, outputs: int, blocks: int, seed: int) -> np.ndarray:
    """Blocks of random bits, but for float16 numbers, which are random finite ones, subnormal and negative ones too."""
    random = np.random.default_rng(seed)
    kind = quantised_type(name)
    size = kind.tensors((1, kind.block))["blocks"].shape[1]
    raw = random.integers(0, 256, (outputs, blocks, size), dtype=np.uint8)
    for at in HALVES.get(name, (0,)):
        raw[..., at + 1] &= 0x83 if random.random() < 0.2 else 0xBB  # no exponent of all ones
    return raw.reshape(outputs, -1)


def random_table(name: str, outputs: int, blocks: int, seed: int) -> QuantisedTable:
    kind = quantised_type(name)
    if name in BLOCK_NAMES:
        return QuantisedTable(
            name, (outputs, blocks * kind.block), {"blocks": random_blocks(name, outputs, blocks, seed)}
        )
    random = np.random.default_rng(seed)
    assert isinstance(kind, AffineType)
    arrays = {}
    for part, spec in kind.tensors((outputs, blocks * kind.block)).items():
        if part == "weight":
            arrays[part] = random.integers(0, 1 << 32, spec.shape, dtype=np.uint32)
        else:
            arrays[part] = from_float32(random.standard_normal(spec.shape).astype(np.float32), kind.dtype)
    return QuantisedTable(name, (outputs, blocks * kind.block), arrays)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and np.array_equal(left.view(np.uint32), right.view(np.uint32))


@pytest.mark.parametrize("name", BLOCK_NAMES)
@settings(max_examples=25, deadline=None)
@given(outputs=st.sampled_from([1, 2, 7, 33]), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 30))
def test_weights_equal_those_of_the_gguf_package(name: str, outputs: int, blocks: int, seed: int) -> None:
    raw = random_blocks(name, outputs, blocks, seed)
    table = QuantisedTable(name, (outputs, blocks * quantised_type(name).block), {"blocks": raw})
    assert same_bits(table.dequantise(), dequantize(raw, GGMLQuantizationType[name.upper()]))


@pytest.mark.parametrize("name", AFFINE_NAMES)
@settings(max_examples=10, deadline=None)
@given(outputs=st.sampled_from([1, 7, 33]), groups=st.integers(1, 3), seed=st.integers(0, 1 << 30))
def test_weights_equal_those_of_mlx(name: str, outputs: int, groups: int, seed: int) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    table, kind = random_table(name, outputs, groups, seed), quantised_type(name)
    assert isinstance(kind, AffineType)
    dtype = {"float16": mx.float16, "bfloat16": mx.bfloat16}[kind.dtype]
    scales, biases = (mx.array(table.arrays[part]).view(dtype) for part in ("scales", "biases"))
    words, how = mx.array(table.arrays["weight"]), {"group_size": kind.group, "bits": kind.bits}
    with mx.stream(mx.cpu):
        wide = mx.dequantize(words, scales.astype(mx.float32), biases.astype(mx.float32), **how)
        narrow = mx.dequantize(words, scales, biases, **how).astype(mx.float32)
    assert same_bits(table.dequantise(), np.array(wide))
    # MLX's 16-bit weights round the product and the sum: codes, scales and offsets give them too.
    scale, offset = table.scale_and_offset()
    assert offset is not None
    products = table.codes().reshape(outputs, groups, -1).astype(np.float32) * scale[..., None]
    products = to_float32(from_float32(products, kind.dtype), kind.dtype) - offset[..., None]
    assert same_bits(to_float32(from_float32(products, kind.dtype), kind.dtype).reshape(outputs, -1), np.array(narrow))


@pytest.mark.parametrize("bits", [4, 8])
def test_what_mlx_quantises_is_read_with_its_codes_in_order(bits: int) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    weights = np.random.default_rng(3).standard_normal((9, 128)).astype(np.float16)
    with mx.stream(mx.cpu):
        words, scales, biases = mx.quantize(mx.array(weights), group_size=64, bits=bits)
    arrays = {"weight": np.array(words)}
    arrays |= {name: np.array(factor).view(np.uint16) for name, factor in (("scales", scales), ("biases", biases))}
    found = QuantisedTable(f"affine{bits}-g64", (9, 128), arrays).dequantise()
    step = np.repeat(np.abs(np.array(scales.astype(mx.float32))), 64, axis=1)
    # Off by half a step where the grid fits; MLX moves the grid to hold the extremes, which costs up to another half.
    assert (np.abs(found - weights) <= step * 1.01).all()


@pytest.mark.parametrize("name", quantised_types())
@settings(max_examples=5, deadline=None)
@given(outputs=st.sampled_from([1, 5, 33]), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 30))
def test_codes_scales_and_offsets_give_the_weights(name: str, outputs: int, blocks: int, seed: int) -> None:
    table, kind = random_table(name, outputs, blocks, seed), quantised_type(name)
    codes, (scale, offset) = table.codes(), table.scale_and_offset()
    assert codes.dtype == np.uint8
    assert codes.shape == table.shape
    assert codes.max() < 1 << kind.bits
    assert scale.dtype == np.float32
    assert scale.shape == (outputs, blocks * kind.block // kind.group)
    weights = np.float32(codes.astype(np.float32) - kind.zero) * np.repeat(scale, kind.group, axis=1)
    if offset is not None:
        weights = weights - np.repeat(offset, kind.group, axis=1)
    assert same_bits(weights, table.dequantise())


@pytest.mark.parametrize("name", quantised_types())
def test_rows_and_inputs_are_parts_of_the_whole(name: str) -> None:
    table, kind = random_table(name, 11, 3, 5), quantised_type(name)
    weights = table.dequantise()
    assert same_bits(table.rows([7, 0, 7]), weights[[7, 0, 7]])
    matrix = QuantisedMatrix.from_table(table)
    part = matrix.inputs(kind.block, 3 * kind.block)
    assert same_bits(part.dequantise(), np.ascontiguousarray(weights[:, kind.block :]))
    assert np.array_equal(part.scores, matrix.scores[kind.block :])


@pytest.mark.parametrize("name", quantised_types())
def test_scores_are_mean_magnitudes(name: str) -> None:
    table = random_table(name, 33, 2, 8)
    matrix = QuantisedMatrix.from_table(table)
    wanted = np.abs(table.dequantise().astype(np.float64)).mean(axis=0)
    # One float32 rounding, and float64 sums in another order.
    assert np.allclose(matrix.scores[:, 0], wanted, rtol=1e-6, atol=0)
    assert matrix.tier_sizes == (1,)


@pytest.mark.parametrize("name", quantised_types())
def test_bytes_are_those_of_the_arrays(name: str) -> None:
    matrix, kind = QuantisedMatrix.from_table(random_table(name, 6, 3, 8)), quantised_type(name)
    everything = np.ones(matrix.shape[1], np.uint8)
    assert matrix.bytes_read(everything) == matrix.block_bytes == matrix.nbytes - matrix.scores.nbytes
    one = np.zeros(matrix.shape[1], np.uint8)
    assert matrix.bytes_read(one) == 0
    one[kind.block : kind.block + 2] = 1
    assert matrix.bytes_read(one) == 6 * 2 * kind.bits // 8 + 6 * kind.extra


@pytest.mark.parametrize("name", quantised_types())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_that_are_no_numbers_are_refused(name: str, bad: float) -> None:
    table = random_table(name, 4, 2, 1)
    raw = {part: array.copy() for part, array in table.arrays.items()}
    if name in BLOCK_NAMES:
        at = HALVES.get(name, (0,))[-1]
        raw["blocks"][2, at : at + 2] = np.array([bad], np.float16).view(np.uint8)
    else:
        kind = quantised_type(name)
        assert isinstance(kind, AffineType)
        raw["biases"][2, 1] = from_float32(np.array([bad], np.float32), kind.dtype)[0]
    with pytest.raises(ModelFormatError, match="NaN, infinite"):
        QuantisedMatrix.from_table(QuantisedTable(name, table.shape, raw))
    with pytest.raises(ModelFormatError, match="NaN or infinite"):
        QuantisedTable(name, table.shape, raw).check()


def test_weights_past_float32_are_refused() -> None:
    table = random_table("affine8-g32-bf16", 2, 1, 1)
    raw = dict(table.arrays)
    raw["scales"] = from_float32(np.full((2, 1), 3e38, np.float32), "bfloat16")
    with pytest.raises(ModelFormatError, match="too large for float32"):
        QuantisedMatrix.from_table(QuantisedTable(table.type, table.shape, raw))


def test_wrong_arrays_are_refused() -> None:
    blocks = random_blocks("q4_k", 3, 2, 0)
    with pytest.raises(InvalidArgumentError, match="not a multiple"):
        QuantisedTable("q4_k", (3, 300), {"blocks": blocks})
    with pytest.raises(InvalidArgumentError, match="must be uint8"):
        QuantisedTable("q4_k", (3, 512), {"blocks": blocks[:, :-1]})
    with pytest.raises(InvalidArgumentError, match="must be uint8"):
        QuantisedTable("q4_k", (3, 512), {"blocks": blocks.view(np.int8)})
    with pytest.raises(InvalidArgumentError, match="has the arrays"):
        QuantisedTable("q4_k", (3, 512), {"weight": blocks})
    with pytest.raises(InvalidArgumentError, match="unknown quantised type 'q9_9'"):
        QuantisedTable("q9_9", (3, 512), {"blocks": blocks})
    with pytest.raises(InvalidArgumentError, match="scores"):
        QuantisedMatrix("q4_k", (3, 512), {"blocks": blocks}, np.zeros(512, np.float32))


def test_blocks_that_the_gguf_package_quantised_come_back_near() -> None:
    weights = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"):
        table = QuantisedTable(name, (7, 96), {"blocks": quantize(weights, GGMLQuantizationType[name.upper()])})
        scale, _ = table.scale_and_offset()
        # At most half a step, but a whole one at the far end of the grids whose two ends differ.
        assert (np.abs(table.dequantise() - weights) <= 1.01 * np.abs(np.repeat(scale, 32, axis=1))).all()
