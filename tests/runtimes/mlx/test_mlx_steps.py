"""How the mlx runtime cuts a pass into steps, what a step's state says, and caches: without kernels, on any machine."""

from __future__ import annotations

from threading import RLock
from typing import Any

import numpy as np
import pytest

from specdec.errors import InvalidArgumentError
from specdec.model.effort import Efforts
from specdec.runtimes.base import Rows, path_to
from specdec.runtimes.mlx.batch import Share, share_of, steps_of
from specdec.runtimes.mlx.cache import SPAN, GpuCache
from specdec.runtimes.mlx.state import (
    CHOICES,
    LOGITS_FROM,
    MAX_ROWS,
    PATH_WORDS,
    PATHS,
    PIECE_SIZE,
    PIECES,
    PLACES,
    STATE_SIZE,
    WANTED,
    chain,
    head_state,
    state_of,
)
from specdec.runtimes.mlx.step_flow import FLOW_VARIABLE, wants_flow
from specdec.runtimes.mlx.takes import kept

FULL = Efforts(np.ones(3))


class Held:
    """A cache that holds some tokens."""

    def __init__(self, length: int) -> None:
        self.length = length


def share(number: int, length: int, count: int, parents: Any = None, logits: Any = "all", mode: str = "dense") -> Share:
    cache: Any = Held(length)
    rows = Rows(cache, list(range(count)), FULL, parents, None, logits)
    return share_of(number, rows, cache, list(rows.tokens), mode, selects=mode == "verify")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, MAX_ROWS])
def test_steps_take_every_row_once_and_in_order(seed, most):
    rng = np.random.default_rng(seed)
    shares = [
        share(n, 0, int(rng.integers(1, 40)), mode=str(rng.choice(["dense", "verify"])))
        for n in range(rng.integers(1, 9))
    ]
    done = [0] * len(shares)
    steps = list(steps_of(shares, most))
    for step in steps:
        assert len({part.mode for part, _, _ in step}) == 1
        assert sum(last - first for _, first, last in step) <= most
        for part, first, last in step:
            assert first == done[part.number] < last
            done[part.number] = last
    assert done == [len(part.ids) for part in shares]
    for mode in ("dense", "verify"):
        rows = sum(len(part.ids) for part in shares if part.mode == mode)
        assert sum(step[0][0].mode == mode for step in steps) == -(-rows // most)


def test_the_state_of_chains_says_where_rows_are():
    parts = [share(0, 7, 3, logits="last"), share(1, 300, 20, logits="all")]
    state = state_of([parts[0].piece(0, 3, 1), parts[1].piece(4, 9, 0)], [256, 512])
    assert state.shape == (STATE_SIZE,)
    assert state[:2].tolist() == [7, 8]
    assert state[2:10].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert state[CHOICES : CHOICES + 8].tolist() == [1] * 3 + [0] * 5
    assert state[PLACES : PLACES + 8].tolist() == [7, 8, 9, 304, 305, 306, 307, 308]
    assert state[PIECES : PIECES + 2 * PIECE_SIZE].tolist() == [0, 3, 7, 7, 256, 0, 0, 3, 5, 304, 304, 512, 0, 0]
    assert not state[PIECES + 2 * PIECE_SIZE :].any()  # the other pieces have no rows, and there are no trees
    assert state[WANTED : WANTED + 6].tolist() == [2, 3, 4, 5, 6, 7]
    assert state[LOGITS_FROM] == 2
    head = head_state(state, 6)
    assert (head[1], head[CHOICES : CHOICES + 6].tolist()) == (6, [1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("wanted", ["all", "last", "none"])
def test_logits_that_are_wanted_are_at_the_end_of_a_sequence(wanted):
    part = share(0, 0, 20, logits=wanted)
    found = [part.piece(first, last, 0).wanted for first, last in ((0, 16), (16, 20))]
    assert found == {"all": [16, 4], "last": [0, 1], "none": [0, 0]}[wanted]


def test_the_state_of_a_tree_names_each_path_by_position():
    rng = np.random.default_rng(0)
    parents = [-1, *(int(rng.integers(-1, row)) for row in range(1, 40))]
    part = share(0, 300, 40, parents)
    state = state_of([chain([5, 6], 9), part.piece(20, 34, 0)], [256, 512])
    assert state[PIECES + PIECE_SIZE : PIECES + 2 * PIECE_SIZE].tolist() == [2, 14, 320, 300, 512, 0, 0]
    paths = state[PATHS:].view(np.uint8).reshape(MAX_ROWS, 4 * PATH_WORDS)
    assert paths[1, :2].tolist() == [0, 1]  # a chain in one pass with a tree
    for row in range(20, 34):
        path = path_to(parents, row)
        assert state[PLACES + row - 18] == 300 + len(path) - 1
        assert paths[row - 18, : len(path)].tolist() == path


def test_parents_of_a_chain_are_a_chain():
    assert share(0, 5, 3, [-1, 0, 1]).piece(0, 3, 0) == chain([0, 1, 2], 5, wanted=3)


@pytest.fixture
def cache() -> GpuCache:
    """Two layers of one key-value head of 4, for 600 tokens."""
    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    return GpuCache(mx, [(2, 1, 0, 4)] * 2, 600, RLock())


def fill(cache: GpuCache, count: int) -> None:
    """Put `count` positions, each with its own number, where a pass would."""
    cache.reserve(cache.length + count)
    for array in cache.arrays:
        for place in range(cache.length, cache.length + count):
            array[..., place, :] = place
    cache.advance(count)


def held(cache: GpuCache) -> list[list[int]]:
    """Numbers of the positions held, by layer; equal in all of a position's values."""
    found = []
    for array in cache.arrays:
        values = np.array(array)[..., : cache.length, :]
        assert (values == values[:1, :1, :, :1]).all()
        found.append(values[0, 0, :, 0].astype(int).tolist())
    return found


def test_a_cache_grows_by_doubling_up_to_its_capacity(cache):
    assert (cache.nbytes, cache.positions, cache.capacity) == (0, 0, 600)
    fill(cache, 3)
    assert (cache.positions, cache.nbytes) == (SPAN, 2 * 2 * SPAN * 4 * 2)
    fill(cache, 297)
    assert (cache.positions, held(cache)) == (2 * SPAN, [list(range(300))] * 2)
    cache.reserve(600)
    assert (cache.positions, held(cache)) == (3 * SPAN, [list(range(300))] * 2)


def test_a_cache_keeps_a_path(cache):
    fill(cache, 12)
    cache.keep(5, [0, 2, 3, 6])
    assert held(cache) == [[0, 1, 2, 3, 4, 5, 7, 8, 11]] * 2
    cache.keep(4, [0, 1])
    assert held(cache) == [[0, 1, 2, 3, 4, 5]] * 2
    cache.keep(3, [])
    assert held(cache) == [[0, 1, 2]] * 2
    for base, rows in ((4, []), (1, [1, 0]), (1, [2]), (-1, [])):
        with pytest.raises(InvalidArgumentError):
            cache.keep(base, rows)
    assert cache.length == 3


def test_a_fork_is_a_copy(cache):
    fill(cache, 260)
    forked = cache.fork(250, 250)
    assert (forked.length, forked.capacity, forked.positions) == (250, 250, SPAN)
    cache.trim(10)
    fill(cache, 1)
    for array in cache.arrays:
        array[..., 3, :] = 99
    assert held(forked) == [list(range(250))] * 2
    assert cache.fork(0, 7).nbytes == 0
    with pytest.raises(InvalidArgumentError, match="cannot hold 12"):
        cache.fork(12, 20)


def test_a_table_that_another_thread_empties_gives_its_value_all_the_same():
    class Emptied(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            self.clear()

    assert kept(Emptied(), "one", lambda: 3) == 3
    table: dict[str, Any] = {}
    assert [kept(table, "none", lambda value=value: value) for value in (None, 5)] == [None, None]


def test_weights_flow_only_where_the_user_asks_for_it(monkeypatch):
    monkeypatch.delenv(FLOW_VARIABLE, raising=False)
    assert not wants_flow()
    monkeypatch.setenv(FLOW_VARIABLE, "1")
    assert wants_flow()
    monkeypatch.setenv(FLOW_VARIABLE, "yes")
    with pytest.raises(InvalidArgumentError, match="SPECDEC_INT4_FLOW must be 0 or 1, not 'yes'"):
        wants_flow()
