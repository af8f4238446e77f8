"""Launches that draft for themselves, from the runtime's side and without a GPU: what they are told, what is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_driver import FakeDriver, use_fake_driver
from specdec.kernels.reference.recycle import MATCH_CHANCES, RANK_CHANCES, SECOND_CHANCE, TOP
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Planned, Recycling, Rows
from specdec.runtimes.mlx.recycle import BEGINS, RANKS_AT, SECOND_AT, SURVEYS, TEXT_AT, Recycler
from specdec.runtimes.mlx.state import AHEAD, ENDS, LOGITS_FROM, RECYCLE, RECYCLE_SIZE, SHOWS, STATE_SIZE
from specdec.store import Store, convert

mx: Any = pytest.importorskip("mlx.core")


@pytest.fixture(params=["float16", "quantised"])
def made(request, tmp_path) -> Iterator[tuple[Any, FakeDriver]]:
    """A runtime and its driver."""
    if request.param == "quantised":
        store = convert(quantised_source(quantised_config(max_context=512), "q4_k"), tmp_path / "s", quantised="keep")
    else:
        store = convert(SyntheticSource(tiny_config(max_context=512), dtype="float16"), tmp_path / "s")
    with pytest.MonkeyPatch.context() as patch:
        driver = use_fake_driver(patch)
        from specdec.runtimes.mlx.runtime import MlxRuntime

        yield MlxRuntime(Store.open(store, verify=False)), driver


def asked(
    runtime: Any, held: Any, text: list[int], *, rows: int = 8, ahead: int = 3, limit: int = 90, **more: Any
) -> Rows:
    efforts = resolve_efforts(more.pop("effort", 1.0), runtime.config)
    wish = Recycling(text, rows, limit)
    return Rows(held, text[-1:], efforts, logits="choices", ahead=ahead, recycling=wish, **more)


def held_of(runtime: Any, count: int) -> Any:
    held = runtime.new_cache(200)
    runtime.forward([Rows(held, [1] * count, resolve_efforts(1.0, runtime.config), logits="none")])
    return held


def test_a_launch_is_told_all_that_it_needs(made):
    runtime, driver = made
    assert runtime.info.recycles in (8, 16)
    text, held = list(range(10, 31)), held_of(runtime, 20)
    driver.trees = [([30, 4, 5, 6], [-1, 0, 0, 1], [5, 9, 8, 7]), ([8, 1], [-1, 0], [2, 3])]
    (result,) = runtime.forward([asked(runtime, held, text, ends=frozenset({40}))])
    assert result.choices is None
    assert result.logits.shape == (0, runtime.config.vocab_size)
    first, second = result.turns
    assert (first.tokens, first.parents, first.kept) == ([4, 5, 6], [-1, -1, 0], [1])
    assert [choice.token for choice in first.choices] == [5, 8]
    assert (second.tokens, second.parents, second.kept) == ([1], [-1], [])
    assert [choice.token for choice in second.choices] == [2]
    assert held.length == 23
    state = driver.told[-1]
    assert [state[SHOWS], state[AHEAD], state[ENDS], state[LOGITS_FROM]] == [1, 3, 41, 0]
    width, length, low, high, reset, slots, limit, room = state[RECYCLE : RECYCLE + RECYCLE_SIZE].tolist()
    assert (width, length, reset, limit) == (8, 21, 1, 90)
    assert slots == held.positions
    assert room >= 512
    memory = (high << 32) | (low & 0xFFFFFFFF)
    (chances,) = (array.tolist() for address, array in driver.sent if address == memory)
    assert chances[: len(MATCH_CHANCES)] == list(MATCH_CHANCES)
    assert chances[RANKS_AT : RANKS_AT + TOP] == list(RANK_CHANCES)
    assert chances[SECOND_AT] == SECOND_CHANCE
    (sent,) = (array for address, array in driver.sent if address == memory + 4 * TEXT_AT)
    assert sent.tolist() == text


def test_only_what_the_device_does_not_know_is_sent_again(made):
    runtime, driver = made
    text, held = list(range(10, 31)), held_of(runtime, 20)
    driver.trees = [([30, 4], [-1, 0], [4, 9])]
    runtime.forward([asked(runtime, held, text)])
    text += [4, 9, 40]
    held.advance(1)
    del driver.sent[:]
    runtime.forward([asked(runtime, held, text)])
    assert driver.sent[0][1].tolist() == [4, 9, 40]
    assert driver.told[-1][RECYCLE + 4] == 0
    other = held_of(runtime, 5)
    del driver.sent[:]
    runtime.forward([asked(runtime, other, [7, 8, 9, 10, 11, 12])])
    assert driver.sent[0][1].tolist() == [7, 8, 9, 10, 11, 12]
    assert driver.told[-1][RECYCLE + 4] == 1
    del driver.sent[:]
    runtime.forward([asked(runtime, held, [*text, 41])])
    assert len(driver.sent[0][1]) == len(text) + 1
    assert driver.told[-1][RECYCLE + 4] == 1


def test_what_it_cannot_draft_for_is_a_plain_row(made):
    runtime, driver = made
    held = held_of(runtime, 20)
    driver.tokens += [3]
    below = asked(runtime, held, [1] * 21, effort=0.5, ahead=0)
    assert [choice.token for choice in runtime.forward([below])[0].choices] == [3]
    both = [asked(runtime, held_of(runtime, 9), [1] * 10, ahead=0) for _ in range(2)]
    assert [one.turns for one in runtime.forward(both)] == [None, None]
    assert not driver.told[-1][RECYCLE]


def test_kernels_are_compiled_beforehand(made):
    runtime, _ = made
    efforts = resolve_efforts(1.0, runtime.config)
    runtime.compile([Planned(4, efforts, recycles=True), Planned(8, efforts, recycles=True)])
    kinds = runtime._transformer.whole._kernels
    assert {key[2] for key in kinds if key[3] and not key[4]} >= {runtime._transformer.row_step(8)}


def test_what_texts_begin_with_is_sent_whole(made):
    runtime, driver = made
    vocabulary, room = runtime.config.vocab_size, 512
    assert not runtime.knows_successors
    tokens, successors = np.array([3, 9], np.int32), np.arange(16, dtype=np.int32).reshape(2, TOP)
    runtime.use_successors(tokens, successors)
    assert runtime.knows_successors
    runtime.forward([asked(runtime, held_of(runtime, 20), list(range(21)))])
    low, high = driver.told[-1][RECYCLE + 2 : RECYCLE + 4].tolist()
    place = ((high << 32) | (low & 0xFFFFFFFF)) + 4 * (TEXT_AT + room + vocabulary * TOP)
    sent = [array.reshape(vocabulary, TOP) for address, array in driver.sent if address == place]
    assert (sent[0] == -1).all()
    assert sent[-1][tokens].tolist() == successors.tolist()
    assert (np.delete(sent[-1], tokens, axis=0) == -1).all()


def test_a_survey_asks_for_every_token_once(made):
    runtime, driver = made
    each, tokens = runtime.info.recycles - 1, list(range(30))
    turns = -(-len(tokens) // each)
    rows = np.arange(turns * (each + 1) * TOP, dtype=np.int32).reshape(turns, each + 1, TOP)
    driver.surveyed.append(rows)
    found = runtime.survey([1, 2, 3, 4], tokens)
    assert found.tolist() == rows[:, 1:].reshape(-1, TOP)[: len(tokens)].tolist()
    state = driver.told[-1]
    assert state[RECYCLE : RECYCLE + 2].tolist() == [each + 1, len(tokens)]
    assert state[RECYCLE + 4] == SURVEYS
    assert state[:3].tolist() == [3, 1, 4]
    assert driver.sent[-2][1].tolist() == tokens
    text = list(range(21))  # the text of the last launch is gone
    for mode in (BEGINS, 0):
        driver.trees = [([20, 4], [-1, 0], [5, 9])]
        runtime.forward([asked(runtime, held_of(runtime, 20), text)])
        assert driver.told[-1][RECYCLE + 4] == mode


def test_a_survey_has_room_where_texts_are_short():
    driver: Any = FakeDriver()
    recycler = Recycler(driver, lambda count: np.zeros(count), lambda _: 4096, vocab_size=500, most_tokens=64)
    state, cache = np.zeros(STATE_SIZE, np.int32), SimpleNamespace(positions=256)
    recycler.tell_survey(state, cache, range(240), 16)  # type: ignore[arg-type]
    assert state[RECYCLE + 1] == 240 <= state[RECYCLE + 7]
    assert driver.sent[-1][1].tolist() == list(range(240))


@pytest.mark.parametrize(
    ("owners", "resets"),
    [((None, None), [1, 1]), (("a", "a"), [1, 0]), (("a", "b"), [1, 1]), (("a", None, "a"), [1, 1, 1])],
    ids=str,
)
def test_successors_stay_with_their_owner(made, owners, resets):
    runtime, driver = made
    found = []
    for owner in owners:
        held, text = held_of(runtime, 20), list(range(10, 31))
        wish = Recycling(text, 8, 90, owner)
        rows = asked(runtime, held, text)
        for _ in range(2):
            driver.trees = [([30, 4], [-1, 0], [5, 9])]
            runtime.forward([replace(rows, ahead=0, recycling=wish)])
            found.append(int(driver.told[-1][RECYCLE + 4]))
            held.trim(20)
    assert found == [flag for reset in resets for flag in (reset, 0)]
