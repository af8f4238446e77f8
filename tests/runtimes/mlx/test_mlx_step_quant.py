"""What the one-kernel step of a quantised model is told: shares of the grid, places in memory, the kernel's text.

The kernel itself runs in `test_gpu_quantised.py`, on a GPU.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_steps import GRID, SHAPES, model, step_of

from specdec.runtimes.mlx import step as mlx_step
from specdec.runtimes.mlx.model import Kind
from specdec.runtimes.mlx.quant import quant_form
from specdec.runtimes.mlx.step_quant import ROW_STEPS, _segments, _shared_out, suits


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=3), st.integers(3, 200))
def test_a_grid_is_shared_out_by_size(sizes: list[float], grid: int) -> None:
    shares = list(_shared_out(grid, sizes))
    assert shares[0][0] == 0
    assert sum(blocks for _, blocks in shares) == grid
    assert all(blocks >= 1 for _, blocks in shares)
    for (begin, blocks), (following, _) in pairwise(shares):
        assert begin + blocks == following
    for (_, blocks), size in zip(shares, sizes, strict=True):
        # To the next whole number, but for what the others must have at least.
        assert abs(blocks - grid * size / sum(sizes)) < len(sizes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("types", [("affine4-g64",), ("q4_k", "q4_k", "q6_k"), ("q8_0",), ("q5_1", "affine8-g32")])
def test_a_block_has_room_for_all_kernels_that_are_used(
    monkeypatch: pytest.MonkeyPatch, shape: str, types: tuple[str, ...]
) -> None:
    made: list[tuple[Any, int]] = []
    monkeypatch.setattr(mlx_step, "build", lambda _mx, _backend, text, shared_bytes: made.append((text, shared_bytes)))
    step, _ = step_of(shape, *types)
    assert step.most_rows in ROW_STEPS or (step.most_rows, shape) == (0, "70B")
    for rows in (rows for rows in ROW_STEPS if rows <= step.most_rows):
        for mode, selects in (("quant", False), ("quant", True), ("nested", False)):
            if mode == "nested" and rows > 1:
                continue
            step._kernel(Kind(mode, selects, rows, 0, rows))
            text, shared_bytes = made[-1]
            assert shared_bytes <= 227 * 1024
            defined = dict(re.findall(r"^#define (\w+) (.*)$", text.header, re.MULTILINE))
            assert int(defined["STAGES"]) >= int(defined["FILL_SECOND"]) >= 1
            assert int(defined["GROUPS_AT"]) % 16 == int(defined["RING_AT"]) % 16 == 0
            assert int(defined["GROUPS_AT"]) < int(defined["ENDS_AT"]) < int(defined["RING_AT"]) < shared_bytes
            assert len(defined["FORM_LIST"].split("}, ")) == len(set(types))
            # Heads of all units under way have a slot.
            widest = min(quant_form(name).span for name in types)
            assert int(defined["HEAD_SLOTS"]) > (int(defined["STAGES"]) - 2 + widest) // widest
    assert len({text.name for text, _ in made}) == len(made)


def test_matrices_of_one_row_share_the_grid_by_their_bytes() -> None:
    step, config = step_of("7B", "affine4-g64")
    tiles, steps, begins, blocks = zip(*step.segments, strict=True)
    assert tiles == (32, 8, 8, 32, 112, 112, 32, 250)
    assert steps == (128, 128, 128, 128, 128, 128, 448, 128)
    assert blocks == (88, 22, 22, 132, 66, 66, 132, 132)
    assert begins == (0, 88, 110, 0, 0, 66, 0, 0)
    assert config.vocab_size == tiles[-1] * 128
    step, _ = step_of("135M", "q8_0")
    assert [steps for _, steps, _, _ in step.segments] == [18, 18, 18, 18, 18, 18, 48, 18]


def test_upper_bits_alone_are_forms_of_their_own_and_take_less_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(mlx_step, "build", lambda _mx, _backend, text, shared_bytes: made.append(text))  # noqa: ARG005
    step, _ = step_of("7B", "q8_0", part=True)
    for mode in ("quant", "nested"):
        step._kernel(Kind(mode, False, 1, 0, 1))
    found = [dict(re.findall(r"^#define (\w+) (.*)$", text.header, re.MULTILINE)) for text in made]
    assert [defined["FORM_LIST"] for defined in found] == ["{4, 128, 1, 0, 0, 0, 0}, {0, 128, 1, 0, 0, 0, 4}"] * 2
    assert [int(defined["STAGE_BYTES"]) for defined in found] == [4096 + 256, 2048 + 256]
    # Gate and up of two blocks, of which one of each has half of its codes: the same; of one block, a third.
    assert [blocks for _, _, _, blocks in step.segments[4:6]] == [66, 66]
    _, layers, head = model("7B", "q8_0", part=True)
    matrices = [packed for linear in layers[0].linears for packed in linear.quant]
    gate, up = (blocks for _, _, _, blocks in _segments(GRID, matrices, head.quant[0])[4:6])
    assert (gate, up) == (86, 46)


def test_models_with_matrices_in_16_bits_take_kernels_one_by_one() -> None:
    _, layers, head = model("135M", "q8_0")
    assert suits(layers, head)
    gate, up = layers[1].linears[2].quant
    layers[1].linears[2].quant = gate, replace(up, form=replace(up.form, bits=16))
    assert not suits(layers, head)
