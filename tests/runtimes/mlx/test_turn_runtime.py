"""A quantised runtime whose turns run as graphs, without a GPU: what they are given, what other passes do, and what is
compiled. The graphs are in `test_turn_graphs.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_driver import FakeDriver, use_fake_driver
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Planned, Recycling, Rows
from specdec.runtimes.mlx import prompt_quant
from specdec.runtimes.mlx import runtime as mlx_runtime
from specdec.runtimes.mlx.recycle import SURVEYS
from specdec.runtimes.mlx.state import PIECES, RECYCLE
from specdec.runtimes.mlx.step import CHOICE_WORDS
from specdec.runtimes.mlx.turn_graphs import TurnGraphs
from specdec.runtimes.mlx.wide import WidePasses
from specdec.store import Store, convert

pytest.importorskip("mlx.core")


class StandIn:
    """Turns that keep what was drafted for them.

    Attributes:
        found: what the next run gives.
        given: what each run was given.
        calls: all calls, by name.
    """

    most_rows = 16

    def __init__(self) -> None:
        self.found = np.zeros((0, 16, CHOICE_WORDS), np.float32)
        self.given: list[tuple[Any, ...]] = []
        self.calls: list[str] = []

    def show(self, *trees: tuple[list[int], list[int], list[int]]) -> None:
        """Let the next run give these turns: tokens of rows, the rows that they follow, and what each chose."""
        self.found = np.full((len(trees), self.most_rows, CHOICE_WORDS), 99, np.float32)
        for turn, (tokens, parents, chosen) in zip(self.found, trees, strict=True):
            turn[: len(tokens), :4] = 3, 1, 2, -0.5
            words = [*zip(chosen, tokens, parents, [len(tokens)] * len(tokens), strict=True)]
            turn[: len(tokens), 4:].view(np.int32)[:] = words

    def finish(self) -> None:
        self.calls.append("finish")

    def run(self, state: np.ndarray, cache: Any, reach: int, angles: Any) -> np.ndarray:
        self.calls.append("run")
        self.given.append((state.copy(), cache, reach, angles))
        return self.found


class Made:
    """A quantised runtime, its driver, and what stands for its turns.

    Attributes:
        compiled: whether kernels that choose tokens were compiled, each time that those of wide passes were.
    """

    def __init__(self, store: Any, patch: pytest.MonkeyPatch) -> None:
        self.driver, self.turns = use_fake_driver(patch), StandIn()
        self.compiled: list[bool] = []
        turns, compiled = self.turns, self.compiled

        class Wide(WidePasses):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.turns = turns  # type: ignore[assignment]

            def compile(self, *, decodes: bool) -> None:
                compiled.append(decodes)

        patch.setattr(mlx_runtime, "WidePasses", Wide)
        self.runtime = mlx_runtime.MlxRuntime(Store.open(store, verify=False))
        self.efforts = resolve_efforts(1.0, self.runtime.config)

    def held(self, count: int) -> Any:
        """A cache of some tokens."""
        held = self.runtime.new_cache(300)
        self.runtime.forward([Rows(held, [1] * count, self.efforts, logits="none")])
        return held


@pytest.fixture
def made(tmp_path: Any) -> Iterator[Made]:
    store = convert(quantised_source(quantised_config(max_context=512), "q4_k"), tmp_path / "s", quantised="keep")
    with pytest.MonkeyPatch.context() as patch:
        yield Made(store, patch)


def test_a_quantised_runtime_runs_turns_as_graphs(made: Made) -> None:
    runtime, turns = made.runtime, made.turns
    assert runtime.info.recycles == 16
    text, held = list(range(10, 31)), made.held(20)
    launched = len(made.driver.launched)
    turns.show(([30, 4, 5, 6], [-1, 0, 0, 1], [5, 9, 8, 7]), ([8, 1], [-1, 0], [2, 3]))
    asked = Recycling(text, 32, 90)
    rows = Rows(held, text[-1:], made.efforts, logits="choices", ahead=3, recycling=asked, ends=frozenset({40}))
    (result,) = runtime.forward([rows])
    ((state, cache, reach, _),) = turns.given
    assert len(made.driver.launched) == launched  # no step
    assert cache is held
    assert 20 + 16 + 3 < reach <= held.positions
    assert state[RECYCLE] == 16
    whole: Any = runtime._transformer.whole
    address = whole.address(held)
    assert state[PIECES : PIECES + 5].tolist() == [0, 1, 20, 20, held.positions]
    assert state[PIECES + 5 : PIECES + 7].view(np.int64).tolist() == [address]
    assert result.turns is not None
    first, second = result.turns
    assert (first.tokens, first.parents, first.kept) == ([4, 5, 6], [-1, -1, 0], [1])
    assert [choice.token for choice in first.choices] == [5, 8]
    assert (second.tokens, second.kept) == ([1], [])
    assert held.length == 20 + 2 + 1


def test_other_passes_wait_for_turns(made: Made) -> None:
    held = made.held(20)
    made.turns.calls.clear()
    made.runtime.forward([Rows(held, [5], made.efforts, logits="choices")])
    assert made.turns.calls == ["finish"]


def test_a_survey_is_a_step(made: Made) -> None:
    runtime, driver, tokens = made.runtime, made.driver, list(range(30))
    rows = runtime._turning._step_rows
    assert 1 < rows <= 16
    turns_made = -(-len(tokens) // (rows - 1))
    found = np.arange(turns_made * rows * 8, dtype=np.int32).reshape(turns_made, rows, 8)
    driver.surveyed.append(found)
    assert runtime.survey([1, 2, 3, 4], tokens).tolist() == found[:, 1:].reshape(-1, 8)[: len(tokens)].tolist()
    state = driver.told[-1]
    assert state[RECYCLE : RECYCLE + 2].tolist() == [rows, len(tokens)]
    assert state[RECYCLE + 4] == SURVEYS
    assert "run" not in made.turns.calls


def test_turns_of_few_rows_are_a_step(made: Made) -> None:
    held, driver, text = made.held(20), made.driver, list(range(10, 31))
    for rows, graphs in ((4, 0), (5, 1), (2, 1)):
        driver.trees = [([30, 4], [-1, 0], [5, 9])]
        made.turns.show(([30, 4], [-1, 0], [5, 9]))
        launched = len(driver.launched)
        asked = Rows(held, text[-1:], made.efforts, logits="choices", recycling=Recycling(text, rows, 90))
        (result,) = made.runtime.forward([asked])
        assert result.turns is not None
        assert [choice.token for choice in result.turns[0].choices] == [5]
        assert len(made.turns.given) == graphs
        assert len(driver.launched) == launched + (rows <= 4)
        held.trim(20)
    assert driver.told[-1][RECYCLE] == 2


@pytest.mark.parametrize(("rows", "by_graphs"), [((5, 16), True), ((4,), False), ((4, 5), True)])
def test_kernels_of_graphs_are_compiled_in_place_of_a_step(
    made: Made, monkeypatch: pytest.MonkeyPatch, rows: tuple[int, ...], by_graphs: bool
) -> None:
    kinds: list[Any] = []
    monkeypatch.setattr(made.runtime._transformer.whole, "compile", kinds.extend)
    made.runtime.compile([Planned(count, made.efforts, recycles=True) for count in rows])
    assert made.compiled == [by_graphs]
    survey = made.runtime._turning.kind_of_surveys.rows
    assert survey > 4
    assert [kind.rows for kind in kinds if kind.tree] == [survey, *[4] * (4 in rows)]
    # Those of all passes that a sequence has beside turns, and of those whose costs are measured.
    whole = made.runtime._transformer.whole
    assert {kind.rows for kind in kinds if not kind.tree} == {whole.row_step(n) for n in range(1, whole.most_rows + 1)}


@pytest.mark.parametrize("kind", ["float16", "quantised"])
def test_quantised_models_alone_have_turns_as_graphs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    driver: FakeDriver = use_fake_driver(monkeypatch)
    monkeypatch.setattr(prompt_quant, "cuda_compiler", lambda _: SimpleNamespace(code=str.encode))
    if kind == "quantised":
        source: Any = quantised_source(quantised_config(max_context=512), "q4_k")
        store = convert(source, tmp_path / "s", quantised="keep")
    else:
        store = convert(SyntheticSource(tiny_config(max_context=512), dtype="float16"), tmp_path / "s")
    runtime = mlx_runtime.MlxRuntime(Store.open(store, verify=False))
    assert isinstance(runtime._wide.turns, TurnGraphs) == (kind == "quantised")
    assert runtime.info.recycles == (16 if kind == "quantised" else runtime._turning._step_rows)
    assert driver.told == []
