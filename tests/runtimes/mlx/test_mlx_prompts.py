"""Wide passes over prompts without a GPU: the rows that they take, launches and tables, and that the kernels compile.

What they compute is in `test_gpu_prompts.py`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_texts import compile_text, nvcc
from hypothesis import given
from hypothesis import strategies as st
from quant_steps import GRID, step_of
from synthetic import tiny_config

from specdec.model.effort import Efforts
from specdec.runtimes.mlx.batch import LEAST_WIDE, Share, steps_of, wide_passes
from specdec.runtimes.mlx.prompt import MOST_ROWS, TILE_ROWS, Prompts
from specdec.runtimes.mlx.prompt_dense import DensePrompts
from specdec.runtimes.mlx.prompt_quant import QuantPrompts
from specdec.runtimes.mlx.prompt_work import ROW_BAND, Part
from specdec.runtimes.mlx.step import WholeStep

FULL = Efforts(np.ones(3))
SHAPE = {"hidden_size": 896, "intermediate_size": 4864, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64}


def share(count: int, wanted: int, *, mode: str = "dense", selects: bool = False, tree: bool = False) -> Share:
    made = Share(0, SimpleNamespace(length=5), list(range(count)), FULL, mode, selects, wanted)  # type: ignore[arg-type]
    if tree:
        made.parents, made.places = [-1] * count, [5] * count
    return made


@given(st.lists(st.tuples(st.integers(1, 700), st.booleans()), min_size=1, max_size=5))
def test_wide_passes_and_steps_take_every_row_once_and_in_order(prompts: list[tuple[int, bool]]) -> None:
    shares = [share(count, 1 if last else 0) for count, last in prompts]
    done = [0] * len(shares)
    passes = list(wide_passes(shares, lambda _: MOST_ROWS))
    for number, taken in enumerate([*passes, *steps_of(shares, 16)]):
        for part, first, last in taken:
            which = next(n for n, each in enumerate(shares) if each is part)
            assert done[which] == first < last
            done[which] = last
        assert sum(last - first for _, first, last in taken) <= (MOST_ROWS if number < len(passes) else 16)
    assert done == [count for count, _ in prompts]
    if sum(count for count, _ in prompts) >= LEAST_WIDE:
        assert all(each.begun == len(each.ids) for each in shares)
    else:
        assert not passes


def test_trees_drafts_choosing_rows_and_choices_go_in_steps() -> None:
    shares = [
        share(60, 0, tree=True),
        share(90, 1, mode="verify", selects=True),
        share(90, 1, mode="int4"),
    ]
    shares += [share(90, 1, mode="quant", selects=True)]
    shares.append(share(90, 90))
    shares[-1].chooses = True
    assert not list(wide_passes(shares, lambda _: MOST_ROWS))
    assert [each.begun for each in shares] == [0] * 5


class Driver:
    """Stands for the CUDA driver: notes launches and what is written."""

    multiprocessors = GRID

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.written: list[np.ndarray] = []

    def function(self, _: bytes, name: str, *, shared_bytes: int) -> str:
        assert shared_bytes <= 227 * 1024
        return name

    def begin(self, launch: Any) -> None:
        assert all(1 <= size <= 65535 for size in launch.grid)
        self.launches.append((launch.given[0].removesuffix("_few"), launch.grid))

    def write(self, _: int, array: np.ndarray) -> None:
        self.written.append(array.copy())

    def wait(self) -> None:
        """Nothing runs."""

    def pinned(self, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def read(self, _: int, array: np.ndarray) -> None:
        array[:] = 1


def dense() -> DensePrompts:
    config = tiny_config(num_layers=3, architecture="qwen2", qkv_bias=True, **SHAPE)
    mx: Any = SimpleNamespace(zeros=lambda *_, **__: 0, eval=lambda *_: None, float32=0, int32=0, uint32=0)
    step = WholeStep(mx, config, dtype="float16", tier_sizes=(16,), driver=Driver())  # type: ignore[arg-type]
    entries = [[f"{layer}.{entry}" for entry in range(17)] for layer in range(3)] + [["last"] * 5]
    return DensePrompts(mx, step, entries, SimpleNamespace(code=lambda text: text.encode()))  # type: ignore[arg-type]


def quantised(*types: str) -> QuantPrompts:
    step, _ = step_of("1.5B", *types)
    entries = [[f"{layer}.{entry}" for entry in range(20)] for layer in range(2)] + [["last"] * 5]
    return QuantPrompts(step.mx, step, entries, SimpleNamespace(code=lambda text: text.encode()))  # type: ignore[arg-type]


def run(prompts: Prompts, monkeypatch: pytest.MonkeyPatch, parts: list[Part]) -> tuple[Driver, list[np.ndarray]]:
    driver, numbers = Driver(), itertools.count(1 << 40, 1 << 36)
    monkeypatch.setattr(prompts._step, "driver", driver)
    monkeypatch.setattr(prompts._step, "addresses", lambda entries: [next(numbers) for _ in entries])
    monkeypatch.setattr(prompts._step, "address", lambda cache: cache.address)
    return driver, prompts.run(parts, object())


def part(count: int, place: int, address: int, wanted: int = 0) -> Part:
    cache: Any = SimpleNamespace(positions=1024, address=address, arrays=[])
    return Part(cache, list(range(100, 100 + count)), place, wanted)


@pytest.mark.parametrize("kind", ["dense", "quantised"])
def test_a_pass_launches_all_layers_and_ends_with_the_last_ones_keys(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    prompts = dense() if kind == "dense" else quantised("q4_k", "q6_k")
    driver, _ = run(prompts, monkeypatch, [part(70, 500, 1 << 33), part(33, 0, 1 << 34)])
    names = [name for name, *_ in driver.launches]
    layer = ["prompt_norm", "prompt_multiply", "prompt_turn", "prompt_attend", "prompt_mix", "prompt_multiply"]
    layer += ["prompt_norm", "prompt_multiply", "prompt_gate", "prompt_multiply"]
    assert names == ["prompt_embed", *layer * (prompts.config.num_layers - 1), *layer[:3]]
    grids = {name: grid for name, grid, *_ in driver.launches}
    assert grids["prompt_norm"] == (103, 1, 1)
    assert grids["prompt_attend"] == (3 + 2, prompts.config.num_heads, 3)
    assert {grid[0] for name, grid, *_ in driver.launches if name == "prompt_multiply"} <= {2, 4}  # of 64 or 32 rows


@pytest.mark.parametrize("kind", ["dense", "quantised"])
def test_logits_are_made_of_the_rows_wanted_in_bands(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    prompts = dense() if kind == "dense" else quantised("q4_k", "q6_k")
    parts = [part(70, 500, 1 << 33, 70), part(33, 0, 1 << 34), part(5, 9, 1 << 35, 1)]
    driver, logits = run(prompts, monkeypatch, parts)
    assert [found.shape for found in logits] == [(count, prompts.config.vocab_size) for count in (70, 0, 1)]
    table = driver.written[0]
    assert table[16 * MOST_ROWS :][:72].tolist() == [*range(70), 107, 0]
    last = [(name, grid[:2]) for name, grid, *_ in driver.launches if name in ("prompt_norm", "prompt_multiply")][-4:]
    tiles = -(-prompts._head_columns // 128)
    small = 1 if kind == "dense" else 2  # blocks of 32 rows for 64
    assert last == [("prompt_norm", (64, 1)), ("prompt_multiply", (small, tiles)),
                    ("prompt_norm", (7, 1)), ("prompt_multiply", (1, tiles))]  # fmt: skip


def test_tables_say_where_every_row_and_tile_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _ = run(dense(), monkeypatch, [part(70, 500, (7 << 33) + 48), part(33, 0, 1 << 34)])
    (table,) = driver.written
    rows, tiles = table[: 16 * MOST_ROWS].reshape(2, MOST_ROWS, 8)
    assert rows[:103, 0].tolist() == [*range(100, 170), *range(100, 133)]
    assert rows[:103, 1].tolist() == [*range(500, 570), *range(33)]
    addresses = np.ascontiguousarray(rows[:103, 4:6]).view(np.int64)[:, 0].tolist()
    assert addresses == [(7 << 33) + 48] * 70 + [1 << 34] * 33
    assert tiles[:6, :4].tolist() == [
        [0, TILE_ROWS, 500, 1024], [32, TILE_ROWS, 532, 1024], [64, 6, 564, 1024],
        [70, TILE_ROWS, 0, 1024], [102, 1, 32, 1024], [0, 0, 0, 0],
    ]  # fmt: skip


def test_long_histories_make_passes_smaller() -> None:
    prompts = dense()
    assert prompts.most_rows(1800) == MOST_ROWS
    assert prompts.most_rows(100_000) < MOST_ROWS
    assert prompts.most_rows(1 << 30) == ROW_BAND


@pytest.mark.slow
@pytest.mark.skipif(nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize("types", [(), ("q4_k", "q6_k"), ("q5_0", "q8_0", "q4_1"), ("q5_k", "affine8-g32")])
def test_the_kernels_compile(tmp_path: Path, types: tuple[str, ...]) -> None:
    prompts = quantised(*types) if types else dense()
    for decodes in (False, True):
        assert compile_text(tmp_path, f"prompts{decodes:d}", prompts.text(decodes=decodes)) == ""
