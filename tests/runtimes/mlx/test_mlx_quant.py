"""Quantised matrices packed for the GPU kernels, taken apart again here byte by byte: codes and factors bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import random_table

from specdec.runtimes.mlx import quant as mlx_quant
from specdec.runtimes.mlx.quant import PackedQuant, QuantForm, pack_quant, quant_form
from specdec.weights.dtypes import to_float32
from specdec.weights.quantised import (
    QuantisedMatrix,
    QuantisedTable,
    UpperMatrix,
    plane_type,
    quantised_type,
    quantised_types,
)

mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and np.array_equal(left.view(np.uint32), right.view(np.uint32))


def unpack_cuda(form: QuantForm, data: np.ndarray, outputs: int, inputs: int) -> tuple[np.ndarray, ...]:
    """Codes (tiles * 128, in), scales and offsets (tiles * 128, groups), one number at a time in order."""
    tiles, wide = -(-outputs // 128), inputs
    spans, rest = wide // (32 * form.span), form.bits - 4 - form.hidden
    sizes = (tiles * spans * form.head_bytes, tiles * wide * 64, tiles * wide * 16 * rest)
    assert data.dtype == np.uint8
    assert data.shape == (sum(sizes),)
    assert all(size % 256 == 0 for size in sizes)
    heads, upper, lower = np.split(data, np.cumsum(sizes)[:2])
    heads, upper = heads.reshape(tiles, spans, -1), upper.reshape(tiles, wide, 64)
    lower = lower.reshape(tiles, wide, 16 * rest)
    groups, each = wide // 32, 2 if form.own == "int8" else 1
    codes = np.zeros((tiles, 128, wide), np.uint8)
    scales = np.zeros((tiles, 128, groups * each), np.float32)
    offsets = np.zeros_like(scales)
    dtype = "bfloat16" if form.bfloat else "float16"
    for o in range(128):
        t, half, g = o // 16, o % 16 // 8, o % 8
        code = (upper[:, :, 8 * g + t] >> (4 * half)) & 15
        if rest == 4:
            code = code << 4 | (lower[:, :, 8 * g + t] >> (4 * half)) & 15
        elif rest == 2:
            code = code << 2 | (lower[:, :, 4 * g + t // 2] >> (t % 2 * 4 + half * 2)) & 3
        elif rest == 1:
            code = code << 1 | (lower[:, :, 2 * g + t // 4] >> (t % 4 * 2 + half)) & 1
        codes[:, o] = code << form.hidden
        place, factors = (g * 8 + t) * 2 + half, 2 if form.offset else 1
        words = np.ascontiguousarray(heads[:, :, : 256 * factors]).view("<u2")
        scale = to_float32(words[:, :, place * factors], dtype)
        offset = to_float32(words[:, :, place * factors + 1], dtype) if form.offset else np.zeros_like(scale)
        for group in range(groups):
            own = heads[:, group // form.span, 256 * factors :]
            pair = own[:, (group % 8 * 128 + place) * 2 :][:, :2] if form.own else np.ones((tiles, 2), np.uint8)
            pair = (pair.view(np.int8) if form.own == "int8" else pair).astype(np.float32)
            if form.own == "int8":
                scales[:, o, 2 * group : 2 * group + 2] = scale[:, group // form.span, None] * pair
            else:
                scales[:, o, group] = scale[:, group // form.span] * pair[:, 0]
                offsets[:, o, group] = offset[:, group // form.span] * pair[:, 1]
    return tuple(part.reshape(tiles * 128, -1) for part in (codes, scales, offsets))


def check(table: QuantisedTable, packed: PackedQuant) -> None:
    form, (outputs, inputs) = packed.form, table.shape
    codes, scales, offsets = unpack_cuda(form, np.array(packed.data), outputs, inputs)
    assert np.array_equal(codes[:outputs, :inputs], table.codes())
    scale, offset = table.scale_and_offset()
    of_group = table.kind.group
    each = 1 if of_group >= 32 else 2
    shared = max(1, of_group // 32)
    count = inputs // 32 * each
    assert same_bits(scales[:outputs, :count], np.repeat(scale, shared, axis=1))
    assert (offset is not None) == form.offset
    if offset is not None:
        assert same_bits(offsets[:outputs, :count], np.repeat(offset, shared, axis=1))
    # What was filled up adds nothing.
    for part in (scales, offsets):
        assert not part[outputs:].any()
        assert not part[:, count:].any()


@pytest.mark.parametrize("name", quantised_types())
def test_every_type_keeps_its_codes_and_factors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = quantised_type(name)
    inputs = 256 if kind.block == 256 else 3 * max(kind.block, 64) + (kind.block if kind.block < 128 else 0)
    table = random_table(name, (300, inputs), np.random.default_rng(5))
    scores = mx.ones((inputs, 1))
    packed = pack_quant(mx, table, scores)
    assert (packed.form, packed.outputs, packed.inputs) == (quant_form(name), 300, inputs)
    assert packed.scores is scores
    check(table, packed)
    # In slices of outputs, as a large one is.
    monkeypatch.setattr(mlx_quant, "_SLICE_WEIGHTS", 128 * 300)
    assert np.array_equal(np.array(pack_quant(mx, table, scores).data), np.array(packed.data))


@pytest.mark.parametrize("name", quantised_types())
def test_packed_matrices_take_the_room_of_their_blocks(name: str) -> None:
    """Rows of 576, as in SmolLM2, where the type has them: only scales of 6 bits, which take a byte, are wider."""
    kind = quantised_type(name)
    inputs = 576 if 576 % kind.block == 0 else 512
    table = random_table(name, (256, inputs), np.random.default_rng(5))
    extra = 4 * 256 * inputs // kind.block if name in ("q4_k", "q5_k") else 0
    assert pack_quant(mx, table, None).data.nbytes == table.block_bytes + extra <= 1.03 * table.block_bytes


@pytest.mark.parametrize("name", [name for name in quantised_types() if quantised_type(name).bits > 4])
def test_a_matrix_that_is_loaded_in_part_is_its_heads_and_upper_bits(name: str) -> None:
    exact = QuantisedMatrix.from_table(random_table(name, (300, 256), np.random.default_rng(5)))
    part = UpperMatrix(name, exact.shape, exact.arrays, exact.scores)
    whole, packed = pack_quant(mx, exact, None), pack_quant(mx, part, None)
    hidden = quantised_type(name).bits - 4
    assert packed.form == quant_form(name, hidden=hidden)
    check(part, packed)
    data = np.array(packed.data)
    assert np.array_equal(data, np.array(whole.data)[: data.size])
    assert whole.data.nbytes - data.nbytes == 384 * 256 * hidden // 8
    for share in (1.0, 0.25):
        nested = whole.bytes_read(share, nested=True)
        assert packed.bytes_read(share, nested=False) == packed.bytes_read(share, nested=True) == nested
        assert whole.bytes_read(share, nested=False) - nested == share * 300 * 256 * hidden / 8


@pytest.mark.parametrize("name", [name for name in quantised_types() if quantised_type(name).bits > 4])
def test_planes_are_packed_as_blocks_are(name: str) -> None:
    kind = quantised_type(name)
    table = random_table(name, (300, max(kind.block, 96 // kind.block * kind.block)), np.random.default_rng(7))
    scores, planes = mx.ones((table.shape[1], 1)), plane_type(name).split(table.arrays)
    found = pack_quant(mx, QuantisedTable(name, table.shape, planes), scores)
    assert np.array_equal(np.array(found.data), np.array(pack_quant(mx, table, scores).data))
    # Without the rest, as without it of the blocks.
    part = {part: array for part, array in planes.items() if part != "rest"}
    ones = np.ones((table.shape[1], 1), np.float32)
    upper, of_blocks = (UpperMatrix(name, table.shape, arrays, ones) for arrays in (part, table.arrays))
    assert np.array_equal(
        np.array(pack_quant(mx, upper, scores).data), np.array(pack_quant(mx, of_blocks, scores).data)
    )


def test_negative_zero_and_negative_factors_are_kept() -> None:
    table = random_table("q4_1", (128, 128), np.random.default_rng(6))
    blocks = table.blocks.reshape(128, 4, 20).copy()
    blocks[:, 0, 0:4] = np.array([0x00, 0x80, 0x00, 0x80], np.uint8)  # -0 and -0
    blocks[:, 1, 1] |= 0x80
    table = QuantisedTable("q4_1", (128, 128), {"blocks": blocks.reshape(128, -1)})
    check(table, pack_quant(mx, table, mx.ones((128, 1))))


def test_forms_say_what_the_types_are() -> None:
    forms = [quant_form(name) for name in quantised_types()]
    assert {form.bits for form in forms} == {4, 5, 6, 8}
    for form in forms:
        kind = quantised_type(form.name)
        assert (form.bits, form.zero, form.span * 32) == (kind.bits, kind.zero, kind.block)
        assert form.bfloat == form.name.endswith("bf16")
    assert quant_form("q8_0").head_bytes == 256
    assert quant_form("affine4-g64").head_bytes == 512
    assert quant_form("q4_k").head_bytes == 512 + 2048
    assert quant_form("q6_k").head_bytes == 256 + 2048
