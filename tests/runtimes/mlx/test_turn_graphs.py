"""Turns as graphs without a GPU: the launches of a turn, which graphs are kept, when they are begun and waited for.

What the kernels compute is in `test_tree_kernels.py`; what a runtime does with such turns, in `test_turn_runtime.py`.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_mlx_decode import MX, SPARE, GraphDriver, decoder_of, wanted
from test_mlx_prompts import quantised

from specdec.runtimes.mlx.prompt import Prompts
from specdec.runtimes.mlx.recycle import BEGINS
from specdec.runtimes.mlx.state import AHEAD, PATHS, RECYCLE, STATE_SIZE
from specdec.runtimes.mlx.step import CHOICE_WORDS
from specdec.runtimes.mlx.turn_graphs import TurnGraphs

SPARE_POSITIONS = 256


class TurnDriver(GraphDriver):
    """Ends a graph when its event is reached, not before.

    Attributes:
        follows: of the turns of a run, whether another one follows; always, after those.
        calls: what was asked for, in order.
        sent: what was sent to the device, by address.
    """

    def __init__(self) -> None:
        super().__init__()
        self.follows: list[bool] = []
        self.calls: list[tuple[str, Any]] = []
        self.sent: list[tuple[int, np.ndarray]] = []
        self.held: list[np.ndarray] = []
        self._events = itertools.count()
        self._marked: dict[int, int] = {}  # how many graphs had been begun
        self._begun = self._ended = 0

    @property
    def shown(self) -> np.ndarray:
        """Float32 memory that the graphs write to."""
        return self.held[-1].view(np.float32)

    def pinned(self, size: int) -> np.ndarray:
        self.held.append(super().pinned(size))
        return self.held[-1]

    def send(self, address: int, array: np.ndarray) -> None:
        self.calls.append(("send", address))
        self.sent.append((address, array.copy()))
        self._begun = self._ended = 0

    def begin(self, launch: Any) -> None:
        super().begin(launch)
        self.calls.append(("begin", (launch.function, launch.grid, *launch._values)))

    def replay(self, graph: int) -> None:
        super().replay(graph)
        self.calls.append(("replay", graph))
        self._begun += 1

    def event(self) -> int:
        return next(self._events)

    def mark(self, event: int) -> None:
        self._marked[event] = self._begun

    def reach(self, event: int) -> None:
        self.calls.append(("reach", self._begun))
        rows = next(values[3] for name, _, values in self.graphs[self.replayed[-1]] if name == "tree_end")
        for turn in range(self._ended, self._marked[event]):
            lines = self.shown.reshape(-1, CHOICE_WORDS)[turn * (1 + rows) : (turn + 1) * (1 + rows)]
            lines[:] = 100 * turn + np.arange(1 + rows)[:, None]
            lines.view(np.int32)[0, 0] = turn >= len(self.follows) or self.follows[turn]
        self._ended = self._marked[event]

    def wait(self) -> None:
        self.calls.append(("wait", len(self.graphs)))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def graphs_of(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> tuple[TurnGraphs, TurnDriver]:
    driver, numbers = TurnDriver(), itertools.count(1 << 40, 1 << 36)
    monkeypatch.setattr(prompts._step, "driver", driver)
    monkeypatch.setattr(prompts._step, "addresses", lambda entries: [next(numbers) for _ in entries])
    monkeypatch.setattr(prompts._step, "address", lambda cache: cache.address)
    spare: Any = SimpleNamespace(positions=SPARE_POSITIONS, address=SPARE, arrays=[], reserve=lambda _: None)
    return TurnGraphs(MX, prompts, spare), driver


def state_for(rows: int, *, ahead: int = 3, mode: int = 0) -> np.ndarray:
    state = np.arange(1000, 1000 + STATE_SIZE, dtype=np.int32)
    state[AHEAD], state[RECYCLE], state[RECYCLE + 4] = ahead, rows, mode
    return state


def run(graphs: TurnGraphs, rows: int = 8, *, reach: int = 100, angles: Any = MX, **options: int) -> np.ndarray:
    cache: Any = SimpleNamespace(positions=1024)
    return graphs.run(state_for(rows, **options), cache, reach, angles)


@pytest.mark.parametrize("reach", [200, 300])
def test_a_graph_drafts_runs_all_layers_and_keeps_a_path(monkeypatch: pytest.MonkeyPatch, reach: int) -> None:
    prompts = quantised("q4_k", "q6_k")
    graphs, driver = graphs_of(prompts, monkeypatch)
    run(graphs, 12, reach=reach)
    (graph,) = driver.graphs.values()
    names = [name.removesuffix("_few") for name, *_ in graph]
    many, mixes = "decode_multiply_16", reach <= 256
    layer = ["decode_norm", many, "decode_turn", "decode_attend", *([] if mixes else ["prompt_mix"]), many]
    layer += ["decode_norm", many, "decode_gate", many]
    layers = layer * prompts.config.num_layers
    assert names == ["tree_begin", "prompt_embed", *layers, "decode_norm", many, "tree_look", "tree_end"]
    assert not driver.launches  # nothing runs but by the graph


@pytest.mark.parametrize(("reach", "splits"), [(256, 1), (257, 2), (513, 4)])
def test_kernels_of_a_turn_share_its_state(monkeypatch: pytest.MonkeyPatch, reach: int, splits: int) -> None:
    prompts = quantised("q4_k", "q6_k")
    graphs, driver = graphs_of(prompts, monkeypatch)
    run(graphs, 9, reach=reach)
    (graph,), ((state, _),), c = driver.graphs.values(), driver.sent, prompts.config
    work = prompts.turn_work(12, reach, MX, state)
    given = {name: (grid, list(values)) for name, grid, values in graph}
    places = work.places
    assert given["tree_begin"] == ((1, 1, 1), [state, work.about, 12, SPARE, SPARE_POSITIONS])
    assert given["prompt_embed"][0] == (12, 1, 1)
    assert given["prompt_embed"][1][0] == work.about
    assert given["tree_look"] == ((132, 12, 1), [state, places["sums"], 64, places["found"], places["tops"]])
    assert given["tree_end"] == ((132, 1, 1), [state, places["found"], places["tops"], 12, driver.shown.ctypes.data])
    attends = [(grid, list(values)) for name, grid, values in graph if name == "decode_attend"]
    assert len(attends) == c.num_layers
    for number, (grid, values) in enumerate(attends):
        assert (grid[0], grid[1] % c.num_kv_heads, grid[2]) == (12, 0, splits)
        assert [values[2], *values[6:9]] == [work.about, number, places["queries"], state + 4 * PATHS]
        assert values[10] == splits


def test_passes_over_other_rows_have_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, driver = decoder_of(quantised("q4_k"), monkeypatch)
    decoder.run([wanted(3, 7, 0), *(wanted(1, 9, number) for number in range(1, 9))], object(), 0)
    (graph,) = driver.graphs.values()
    assert {values[8] for name, _, values in graph if name == "decode_attend"} == {0}
    rows = driver.written[-1][: 12 * 8].reshape(12, 8)
    assert rows[:11, 6].tolist() == rows[:11, 1].tolist() == [7, 8, 9, *[9] * 8]
    assert (rows[:11, 7] == (1 << 31) - 1).all()


@pytest.mark.parametrize(("asked", "rows"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 12), (12, 12), (13, 16), (16, 16)])
def test_graphs_have_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch, asked: int, rows: int) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    assert graphs.most_rows == 16
    assert run(graphs, asked).shape == (4, rows, CHOICE_WORDS)
    grids = {name: grid for name, grid, _ in driver.graphs[0]}
    assert grids["prompt_embed"] == (rows, 1, 1)
    assert f"decode_multiply_{8 if rows <= 8 else 16}" in grids


def test_graphs_are_kept_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    # More splits of attention take new memory.
    for rows, reach, graph in ((16, 5, 0), (13, 256, 0), (8, 5, 1), (16, 257, 2), (16, 30, 3), (14, 200, 3), (8, 9, 4)):
        driver.replayed.clear()
        run(graphs, rows, reach=reach)
        assert driver.replayed == [graph] * 4
    assert len(driver.graphs) == 5


def test_few_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    held = [object() for _ in range(17)]
    for number, angles in enumerate(held):
        driver.follows = [number != 15]
        run(graphs, ahead=1, angles=angles)
        assert len(driver.graphs) == (number + 1 if number < 16 else 1)
    # The sixteenth left a turn without rows under way: graphs are freed after it.
    assert driver.names()[-6:] == ["wait", "send", "replay", "replay", "reach", "reach"]


@pytest.mark.parametrize("ahead", [0, 1, 2, 15])
def test_graphs_are_begun_ahead_of_the_host_by_one(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    found = run(graphs, ahead=ahead)
    assert [begun for name, begun in driver.calls if name == "reach"] == [
        min(1 + ahead, turn + 2) for turn in range(1 + ahead)
    ]
    assert driver.replayed == [0] * (1 + ahead)
    assert len(found) == 1 + ahead
    driver.calls.clear()
    graphs.finish()
    assert not driver.calls  # every turn has been waited for


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_turns_stop_where_none_follows(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    driver.follows = [turn < last for turn in range(5)]
    assert len(run(graphs, ahead=3)) == 1 + last
    assert len(driver.replayed) == min(4, last + 2)
    driver.calls.clear()
    for _ in range(2):
        graphs.finish()
    assert driver.names() == (["wait"] if last < 3 else [])  # for the turn without rows
    driver.follows = []
    assert len(run(graphs, ahead=3)) == 4
    driver.calls.clear()
    graphs.finish()
    assert not driver.calls


def test_a_run_has_the_choices_of_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    driver.follows = [True, True, False]
    found = run(graphs, 7, ahead=15)
    assert found.dtype == np.float32
    wanted = [[100 * turn + 1 + row for row in range(8)] for turn in range(3)]
    assert (found == np.array(wanted, np.float32)[..., None]).all()
    held = found.copy()
    driver.shown[:] = -1  # as the next run's turns do
    assert np.array_equal(found, held)


@pytest.mark.parametrize(("reach", "slots"), [(100, 256), (300, 512), (600, 1000)])
def test_the_progress_follows_the_state(monkeypatch: pytest.MonkeyPatch, reach: int, slots: int) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    state, cache = state_for(8), SimpleNamespace(positions=1000)
    held = state.copy()
    for _ in range(2):
        graphs.run(state, cache, reach, MX)  # type: ignore[arg-type]
        assert np.array_equal(state, held)
        _, sent = driver.sent[-1]
        state[RECYCLE + 5] = slots  # turns end where attention would take one more split, and where the cache does
        assert np.array_equal(sent[:STATE_SIZE], state)
        assert sent[STATE_SIZE:].tolist() == [0, 0, 1]
        state[RECYCLE + 5] = held[RECYCLE + 5]
    assert len({address for address, _ in driver.sent}) == 1
    first = driver.names().index("replay")
    assert driver.names()[:first] == ["send"]


def test_other_texts_are_forgotten_where_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    for mode in (0, BEGINS, 0):
        driver.calls.clear()
        run(graphs, mode=mode)
        begun = [given for name, given in driver.calls if name == "begin"]
        state = driver.sent[-1][0]
        assert begun == ([("tree_forget", (132, 1, 1), state)] if mode == BEGINS else [])
        if begun:
            assert driver.names()[:3] == ["send", "begin", "replay"]


def test_a_model_that_is_dropped_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, driver = graphs_of(quantised("q4_k"), monkeypatch)
    driver.follows = [False]
    run(graphs)
    driver.calls.clear()
    del graphs
    assert driver.calls == [("wait", 1)]
    assert not driver.graphs


def test_memory_of_a_turn_under_way_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = quantised("q4_k")
    graphs, driver = graphs_of(prompts, monkeypatch)
    monkeypatch.setattr(prompts._step, "own", lambda shape, _: driver.calls.append(("own", shape)) or object())
    driver.follows = [False]
    run(graphs, reach=100)  # leaves a turn without rows under way
    driver.calls.clear()
    run(graphs, reach=600)  # more splits: the pass's memory is freed and allocated anew
    assert "wait" in driver.names()[: driver.names().index("own")]
