"""Codes in planes: every byte of a block comes back from them, and they mean what the block meant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import random_table

from specdec.errors import InvalidArgumentError
from specdec.weights.affine import AffineType
from specdec.weights.planes import packed, unpacked
from specdec.weights.quantised import (
    QuantisedMatrix,
    QuantisedTable,
    UpperMatrix,
    plane_type,
    quantised_type,
    quantised_types,
)
from specdec.weights.quantised_types import upper_bits

NAMES = [name for name in quantised_types() if quantised_type(name).bits > 4]


def any_arrays(name: str, outputs: int, blocks: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of random bytes: scales that are not numbers, and codes that no program writes."""
    random, kind = np.random.default_rng(seed), quantised_type(name)
    return {
        part: np.frombuffer(random.bytes(spec.nbytes), spec.memory).reshape(spec.shape)
        for part, spec in kind.tensors((outputs, blocks * kind.block)).items()
    }


def joined(name: str, planes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Blocks from planes, by the layouts of ggml-common.h and of `mlx.core.quantize`."""
    rest = quantised_type(name).bits - 4
    outputs = len(planes["upper"])
    # Bit by bit, the first code in the lowest bits of its byte.
    bits = [np.unpackbits(planes[part], axis=-1, bitorder="little") for part in ("upper", "rest")]
    codes = np.concatenate([bits[1].reshape(outputs, -1, rest), bits[0].reshape(outputs, -1, 4)], axis=-1)
    codes = np.packbits(codes, axis=-1, bitorder="little")[..., 0]
    if "heads" not in planes:
        return {"weight": codes.view("<u4"), "scales": planes["scales"], "biases": planes["biases"]}
    heads = planes["heads"].reshape(outputs, codes.shape[1] // quantised_type(name).block, -1)
    codes = codes.reshape(*heads.shape[:2], -1)
    if name == "q8_0":
        parts = [heads, codes ^ 128]
    elif name in ("q5_0", "q5_1"):
        fifth = np.packbits(codes >> 4, axis=-1, bitorder="little")
        parts = [heads, fifth, codes[..., :16] & 15 | (codes[..., 16:] & 15) << 4]
    elif name == "q5_k":
        groups = codes.reshape(*heads.shape[:2], 8, 32)
        fifth = np.packbits(groups >> 4, axis=-2, bitorder="little")[..., 0, :]
        low = groups[..., ::2, :] & 15 | (groups[..., 1::2, :] & 15) << 4
        parts = [heads, fifth, low.reshape(*heads.shape[:2], -1)]
    else:
        quarters = codes.reshape(*heads.shape[:2], 2, 4, 32)
        low = quarters[..., :2, :] & 15 | (quarters[..., 2:, :] & 15) << 4
        high = sum((quarters[..., k, :] >> 4) << (2 * k) for k in range(4))
        parts = [low.reshape(*heads.shape[:2], -1), high.reshape(*heads.shape[:2], -1), heads]
    return {"blocks": np.concatenate(parts, axis=-1).reshape(outputs, -1)}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(outputs=st.sampled_from([1, 2, 7, 33]), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 30))
def test_every_byte_comes_back(name: str, outputs: int, blocks: int, seed: int) -> None:
    arrays, kind = any_arrays(name, outputs, blocks, seed), plane_type(name)
    planes = kind.split(arrays)
    specs = kind.tensors((outputs, blocks * kind.block))
    assert {part: (array.shape, array.dtype) for part, array in planes.items()} == {
        part: (spec.shape, spec.memory) for part, spec in specs.items()
    }
    assert sum(array.nbytes for array in planes.values()) == sum(array.nbytes for array in arrays.values())
    back = joined(name, planes)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[part], array) for part, array in arrays.items())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(outputs=st.sampled_from([1, 7, 33]), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 30))
def test_planes_mean_what_blocks_mean(name: str, outputs: int, blocks: int, seed: int) -> None:
    kind = quantised_type(name)
    table = random_table(name, (outputs, blocks * kind.block), np.random.default_rng(seed))
    whole = QuantisedMatrix.from_table(table)
    planes = plane_type(name).split(table.arrays)
    matrix = QuantisedMatrix(name, table.shape, planes, whole.scores)
    assert isinstance(matrix.kind, type(plane_type(name)))
    assert np.array_equal(matrix.codes(), whole.codes())
    assert np.array_equal(matrix.dequantise(), whole.dequantise())
    assert np.array_equal(matrix.rows([outputs - 1, 0]), whole.rows([outputs - 1, 0]))
    assert np.array_equal(matrix.inputs_float32(3, kind.block), whole.inputs_float32(3, kind.block))
    last = matrix.inputs((blocks - 1) * kind.block, blocks * kind.block)
    assert np.array_equal(last.dequantise(), whole.dequantise()[:, (blocks - 1) * kind.block :])
    assert (matrix.nbytes, matrix.block_bytes) == (whole.nbytes, whole.block_bytes)
    everything = np.ones(table.shape[1], np.uint8)
    assert matrix.bytes_read(everything) == whole.bytes_read(everything) == matrix.block_bytes
    for bits in range(1, kind.bits):
        seen, from_blocks = upper_bits(matrix.kind, bits), upper_bits(kind, bits)
        assert np.array_equal(seen.dequantise(planes), from_blocks.dequantise(table.arrays))
    # Without the rest.
    part = UpperMatrix(name, table.shape, {n: a for n, a in planes.items() if n != "rest"}, whole.scores)
    other = UpperMatrix(name, table.shape, table.arrays, whole.scores)
    assert np.array_equal(part.dequantise(), other.dequantise())
    assert np.array_equal(part.inputs(0, kind.block).dequantise(), other.inputs(0, kind.block).dequantise())
    assert part.nbytes == other.nbytes == whole.nbytes - planes["rest"].nbytes
    assert part.block_bytes == part.bytes_read(everything) == whole.block_bytes - planes["rest"].nbytes


@settings(max_examples=50, deadline=None)
@given(width=st.sampled_from([1, 2, 4]), outputs=st.integers(1, 5), groups=st.integers(1, 9), seed=st.integers(0, 99))
def test_bytes_of_planes_are_full(width: int, outputs: int, groups: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << width, (outputs, 8 * groups), dtype=np.uint8)
    plane = packed(codes, width)
    assert plane.shape == (outputs, groups * width)
    for code in range(codes.shape[1]):
        byte, shift = divmod(code * width, 8)
        assert np.array_equal(plane[:, byte] >> shift & ((1 << width) - 1), codes[:, code])
    assert np.array_equal(unpacked(plane, width), codes)


def test_what_has_no_planes_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="q4_k has codes of 4 bits: only longer ones lie in planes"):
        plane_type("q4_k")
    with pytest.raises(InvalidArgumentError, match="unknown quantised type 'q9_9'"):
        quantised_type("q9_9", planes=True)
    table = random_table("q5_k", (3, 256), np.random.default_rng(0))
    planes = plane_type("q5_k").split(table.arrays)
    with pytest.raises(InvalidArgumentError, match=r"has the arrays \['heads', 'rest', 'upper'\], not"):
        QuantisedTable("q5_k", (3, 256), {n: a for n, a in planes.items() if n != "rest"})
    with pytest.raises(InvalidArgumentError, match=r"rest of a q5_k matrix of shape .* must be uint8"):
        QuantisedTable("q5_k", (3, 256), planes | {"rest": planes["rest"][:, 1:]})
    with pytest.raises(InvalidArgumentError, match="q4_k has codes of 4 bits"):
        QuantisedTable("q4_k", (3, 256), planes)
    scores = np.ones((256, 1), np.float32)
    with pytest.raises(InvalidArgumentError, match=r"has the arrays \['heads', 'upper'\]"):
        UpperMatrix("q5_k", (3, 256), planes, scores)


def test_heads_of_affine_types_stay_as_they_are() -> None:
    table = random_table("affine8-g64-bf16", (5, 128), np.random.default_rng(0))
    planes = plane_type(table.type).split(table.arrays)
    assert isinstance(table.kind, AffineType)
    assert list(planes) == ["scales", "biases", "upper", "rest"]
    assert planes["scales"] is table.arrays["scales"]
