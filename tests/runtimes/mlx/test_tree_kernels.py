"""Kernels of turns that run as graphs, on the host: drafts by the rule, kept paths, what is learnt, and when turns end.

The layers between them are made up. Attention of rows of a tree is in `test_decode_kernels.py`; launches and graphs, in
`test_turn_graphs.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_steps import Memory
from decode_kernels import ROWS, TREE_KERNELS, aligned
from metal_host_kernels import compiler
from specdec.kernels.reference.recycle import TOP
from tree_kernels import GRID, POSITIONS, SPARE_POSITIONS, TreeTurns, quantised

from specdec.runtimes.base import Recycling
from specdec.runtimes.mlx.recycle import TEXT_AT, turns_of
from specdec.runtimes.mlx.state import MAX_ROWS, MOST_AHEAD, PATHS, PLACES, RECYCLE, STATE_SIZE
from specdec.runtimes.mlx.step import CHOICE_WORDS
from specdec.runtimes.mlx.turn_graphs import TurnGraphs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")]

PLAN_AT, SLOTS = 64, RECYCLE + 5  # words of the recycler's memory and of the state
TREELESS = (1 << 31) - 1


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TreeTurns]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield TreeTurns(quantised(monkeypatch), tmp_path_factory.mktemp("kernels"))


@dataclass
class Until:
    """When turns end.

    Attributes:
        ahead: turns after the first.
        limit: tokens of the text.
        slots: positions.
        end: the token at this place of the answer ends it; -1 for none.
    """

    ahead: int = MOST_AHEAD
    limit: int = 200
    slots: int = POSITIONS
    end: int = -1


class Expected:
    """What the next turn does.

    Args:
        made: the turns, before it.
        text: so far.
        asked: rows.
        until: when turns end.
    """

    def __init__(self, made: TreeTurns, text: list[int], asked: int, until: Until) -> None:
        self.made, self.text, self.position, language = made, text, len(text) - 1, made.language
        tokens, parents = made.rule().draft(text, min(asked, until.slots - self.position), until.limit)
        self.tokens, self.parents = [text[-1], *tokens], [-1, *(parent + 1 for parent in parents)]
        self.paths: list[list[int]] = []
        for row, parent in enumerate(self.parents):
            self.paths.append([*(self.paths[parent] if row else []), row])
        self.places = [self.position + len(path) - 1 for path in self.paths]
        self.likeliest = [language.likeliest(*row) for row in zip(self.tokens, self.places, strict=True)]
        self.chosen, self.kept = [line[0] for line in self.likeliest], [0]
        for row, parent in enumerate(self.parents):
            if parent == self.kept[-1] and self.tokens[row] == self.chosen[parent]:
                self.kept.append(row)
        self.fresh, self.memory = [self.chosen[row] for row in self.kept], made.memory.copy()

    def check_rows(self, rows: int) -> None:
        """After `tree_begin`: the table, the state and the plan."""
        made, state, count = self.made, self.made.state, len(self.tokens)
        cache, spare = np.array([made.cache.ctypes.data, made.spare.ctypes.data], np.int64).view(np.int32).reshape(2, 2)
        lines = [
            [token, place, POSITIONS, 0, *cache.tolist(), self.position + row, self.position]
            for row, (token, place) in enumerate(zip(self.tokens, self.places, strict=True))
        ]
        lines += [[0, 0, SPARE_POSITIONS, 0, *spare.tolist(), 0, TREELESS]] * (rows - count)
        assert made.about[:rows].tolist() == lines
        assert (made.about[rows:] == -1).all()
        assert [state[1], state[2 : 2 + count].tolist()] == [count, self.tokens]
        assert state[PLACES : PLACES + count].tolist() == self.places
        paths = state[PATHS:STATE_SIZE].view(np.uint8).reshape(MAX_ROWS, -1)
        assert [paths[row, : len(path)].tolist() for row, path in enumerate(self.paths)] == self.paths
        plan = self.memory[PLAN_AT:TEXT_AT]
        plan[0], plan[1 : 1 + count], plan[1 + MAX_ROWS : 1 + MAX_ROWS + count] = count, self.tokens, self.parents
        assert np.array_equal(made.memory, self.memory)

    def check_cache(self, before: np.ndarray) -> None:
        """Keys and values of the path follow each other; all others stay."""
        wanted = before.copy()
        for number, row in enumerate(self.kept):
            wanted[..., self.position + number, :] = before[..., self.position + row, :]
        np.testing.assert_array_equal(self.made.cache.view(np.uint16), wanted.view(np.uint16))
        for position, token in enumerate((self.text + self.fresh)[:-1]):
            np.testing.assert_array_equal(self.made.cache[..., position, :], self.made.keys(token, position))

    def check_memory(self) -> None:
        """The text has grown; the table has the likeliest tokens after each row, of equal tokens after the path's."""
        start, table = TEXT_AT + len(self.text), self.memory[-2 * self.made.tables[0].size :]
        self.memory[start : start + len(self.fresh)] = self.fresh
        for row in [*range(len(self.tokens)), *self.kept]:
            table[self.tokens[row] * TOP : (self.tokens[row] + 1) * TOP] = self.likeliest[row]
        assert np.array_equal(self.made.memory, self.memory)
        assert self.made.state[RECYCLE + 1] == len(self.text) + len(self.fresh)

    def check_shown(self, shown: np.ndarray) -> None:
        """Choices of the rows, and what the rows were."""
        count = len(self.tokens)
        wanted = [list(line) for line in zip(self.chosen, self.tokens, self.parents, [count] * count, strict=True)]
        assert shown[1 : 1 + count, 4:].view(np.int32).tolist() == wanted
        for row, line in enumerate(shown[1 : 1 + count]):
            logits = np.sort(self.made.language.logits(self.tokens[row], self.places[row]).astype(np.float64))
            distance = logits - logits[-1]
            assert line[:2].tolist() == [logits[-1], logits[-2]]
            # One or two terms near 1 and thousands below 1e-5: roundings of float32 sums.
            sums = [np.exp(distance).sum(), (np.exp(distance) * distance).sum()]
            np.testing.assert_allclose(line[2:4], sums, rtol=1e-5)
        assert np.isnan(shown[1 + count :]).all()


def begin(made: TreeTurns, text: list[int], asked: int, until: Until) -> list[int]:
    """Begin turns over a text; returns the tokens that end it."""
    ends = made.language.answer(text, until.end + 1)[-1:] if until.end >= 0 else []
    made.fill(text)
    state = made.state_for(Recycling(text, asked, until.limit), ahead=until.ahead, ends=ends)
    made.state[:STATE_SIZE], made.state[STATE_SIZE:] = state, (0, 0, 1)
    made.state[SLOTS], made.about[:] = until.slots, -1
    return ends


def run_turn(made: TreeTurns, text: list[int], rows: int, asked: int, until: Until, shown: np.ndarray) -> Expected:
    """Run a turn and check all that it leaves but whether another one follows; the text grows."""
    wanted, turn = Expected(made, text, asked, until), int(made.state[STATE_SIZE])
    made.begin(rows)
    wanted.check_rows(rows)
    made.layers(made.about[:rows], made.sums)
    before, others = made.cache.copy(), shown.copy()
    made.look(rows, backwards=turn % 2 == 0)
    made.end(rows, shown, backwards=turn % 2 == 1)
    wanted.check_cache(before)
    wanted.check_memory()
    wanted.check_shown(shown[turn])
    shown, others = (np.delete(array, turn, axis=0).view(np.uint32) for array in (shown, others))
    assert np.array_equal(shown, others)
    text += wanted.fresh
    return wanted


def check_nothing_changes(made: TreeTurns, rows: int, shown: np.ndarray) -> None:
    """A turn after the last one has no rows, and leaves everything as it is."""
    held = (made.memory, made.cache, shown, made.state[2:])
    before = [array.copy().view(np.uint8) for array in held]
    made.about[:] = -1
    made.begin(rows)
    spare = np.array([made.spare.ctypes.data], np.int64).view(np.int32).tolist()
    assert made.about[:rows].tolist() == [[0, 0, SPARE_POSITIONS, 0, *spare, 0, TREELESS]] * rows
    made.layers(made.about[:rows], made.sums)
    made.look(rows)
    made.end(rows, shown)
    assert made.state[1] == 0
    for array, wanted in zip(held, before, strict=True):
        assert np.array_equal(array.view(np.uint8), wanted)


def forget(made: TreeTurns, *, backwards: bool = False) -> None:
    made.launch("tree_forget", (made.state.ctypes.data,), (GRID, 1), backwards=backwards)


@pytest.mark.parametrize(
    ("rows", "asked", "until", "reason"),
    [
        (16, 16, Until(ahead=4), "turns"),
        (8, 5, Until(ahead=1), "turns"),  # three rows only fill the graph
        (4, 4, Until(ahead=0), "turns"),
        (16, 13, Until(limit=24 + 12), "limit"),
        (12, 12, Until(slots=23 + 14), "room"),
        (16, 16, Until(end=9), "end token"),
    ],
)
def test_turns_follow_each_other_until_the_text_ends(
    turns: TreeTurns, rows: int, asked: int, until: Until, reason: str
) -> None:
    made, first, done, kept, moved = turns.restart(), turns.language.text(24), 0, 0, 0
    text, reasons = list(first), dict[str, bool]()
    ends = begin(made, text, asked, until)
    forget(made)
    shown = aligned(np.full((1 + MOST_AHEAD, 1 + rows, CHOICE_WORDS), np.nan, np.float32))
    while not any(reasons.values()):
        turn = run_turn(made, text, rows, asked, until, shown)
        done, kept, moved = done + 1, kept + len(turn.kept) - 1, moved + (turn.kept[-1] >= len(turn.kept))
        reasons = {"turns": done > until.ahead, "end token": bool(set(ends) & set(turn.fresh))}
        reasons |= {"limit": len(text) == until.limit, "room": len(text) - 1 == until.slots}
        goes = not any(reasons.values())
        assert made.state[STATE_SIZE:].tolist() == [done, len(turn.kept), goes]
        assert shown[done - 1, 0, :1].view(np.int32).tolist() == [goes]
    assert [name for name, holds in reasons.items() if holds] == [reason]
    assert text[len(first) :] == made.language.answer(first, len(text) - len(first))
    assert done == 1 or (kept and moved)  # paths have other rows between theirs
    for _ in range(2):
        check_nothing_changes(made, rows, shown)


@pytest.mark.parametrize("backwards", [False, True])
def test_another_text_begins_with_what_is_known(turns: TreeTurns, backwards: bool) -> None:
    made, text = turns.restart(), turns.language.text(24)
    begin(made, text, 16, Until())
    made.tables[0] = np.random.default_rng(0).integers(0, 999, made.tables[0].shape)
    wanted = made.memory.copy()
    wanted[-2 * made.tables[0].size : -made.tables[0].size] = made.tables[1].reshape(-1)
    assert (wanted != made.memory).any()
    forget(made, backwards=backwards)
    assert np.array_equal(made.memory, wanted)


def test_rows_are_looked_at_as_in_other_passes(turns: TreeTurns) -> None:
    made, text = turns.restart(), turns.language.text(24)
    begin(made, text, 11, Until())
    made.begin(16)
    assert made.state[1] == 11
    made.layers(made.about, made.sums)
    made.found[:] = np.nan
    made.look(16)
    alone = aligned(np.full(made.found.shape, np.nan, np.float32))
    made.launch("decode_look", (made.sums.ctypes.data, ROWS, alone.ctypes.data), (GRID, 16))
    assert np.array_equal(made.found[:11, :, :5].view(np.uint32), alone[:11, :, :5].view(np.uint32))
    assert not np.isnan(made.found[:11, :, 0]).any()
    assert np.isnan(made.found[11:]).all()


class HostGraphs(Memory):
    """A driver that runs kernels of turns on the host, and layers of `turns` for all others."""

    multiprocessors = GRID

    def __init__(self, turns: TreeTurns) -> None:
        super().__init__()
        self.turns, self.replayed = turns, 0
        self.held = turns.device.held

    def function(self, _: bytes, name: str, *, shared_bytes: int) -> str:
        return name

    def graph(self, launches: list[Any]) -> list[Any]:
        return launches

    def replay(self, graph: list[Any]) -> None:
        self.replayed += 1
        about = next(launch._values[1] for launch in graph if launch.function == "tree_begin")
        for launch in graph:
            if launch.function == "tree_look":
                self.turns.layers(self._at(about, (launch.grid[1], 8)), self._sums(launch._values))
            self.begin(launch)

    def begin(self, launch: Any) -> None:
        if launch.function in TREE_KERNELS:
            self.turns.launch(launch.function, launch._values, launch.grid)

    def event(self) -> None:
        """Everything has ended when it has begun."""

    def mark(self, _: Any) -> None:
        pass

    reach = forget = mark

    def wait(self) -> None:
        pass

    def _at(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        """Int32 at an address."""
        return np.ctypeslib.as_array((ctypes.c_int32 * int(np.prod(shape))).from_address(address)).reshape(shape)

    def _sums(self, values: Any) -> np.ndarray:
        assert values[2] == ROWS
        return self._at(values[1], self.turns.sums.shape).view(np.float32)


def test_graphs_of_turns_answer_as_single_rows_do(turns: TreeTurns, monkeypatch: pytest.MonkeyPatch) -> None:
    made, prompts = turns.restart(), turns.prompts
    step, driver = prompts._step, HostGraphs(made)
    monkeypatch.setattr(step, "driver", driver)
    monkeypatch.setattr(step, "own", lambda shape, _: driver.own(int(np.prod(shape))))
    monkeypatch.setattr(step, "addresses", lambda arrays: [one.ctypes.data if len(one) else 0 for one in arrays])
    monkeypatch.setattr(step, "address", lambda cache: cache.array.ctypes.data)
    for name, empty in (("_table", []), ("_functions", {}), ("_room", (None, 0, 0)), ("_about", (None, 0))):
        monkeypatch.setattr(prompts, name, empty)
    spare: Any = SimpleNamespace(array=made.spare, positions=SPARE_POSITIONS, reserve=lambda _: None)
    cache: Any = SimpleNamespace(array=made.cache, positions=POSITIONS)
    graphs = TurnGraphs(SimpleNamespace(int32=0, float32=0), prompts, spare)
    angles, texts = np.zeros(1, np.float32), [made.language.text(length) for length in (24, 33)]
    # A text that goes on; another one, which begins with what is known, goes on, and ends at its limit.
    for which, begins, rows, ahead, further, count in [
        (0, True, 16, 2, 99, 3), (0, False, 5, 0, 99, 1), (1, True, 16, 3, 99, 4), (1, False, 12, 15, 5, None)
    ]:  # fmt: skip
        text, before = texts[which], list(texts[which])
        if begins:
            made.fill(text)
        driver.replayed, limit = 0, len(text) + further
        state = made.state_for(Recycling(text, rows, limit), ahead=ahead)
        first = made.rule(int(begins)).draft(text, rows, limit)
        found = turns_of(graphs.run(state, cache, len(text) + 60, angles))
        assert (found[0].tokens, found[0].parents) == first
        text += [choice.token for turn in found for choice in turn.choices]
        assert text[len(before) :] == made.language.answer(before, len(text) - len(before))
        for position, token in enumerate(text[:-1]):
            np.testing.assert_array_equal(made.cache[..., position, :], made.keys(token, position))
        assert made.memory[TEXT_AT : TEXT_AT + len(text)].tolist() == text
        if count is None:  # a turn without rows was begun
            assert len(text) == limit
            assert driver.replayed == len(found) + 1
        else:
            assert len(found) == driver.replayed == count
