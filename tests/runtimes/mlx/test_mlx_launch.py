"""Steps as one kernel from the runtime's side, without a GPU: what is launched with what, and what is read back.

The kernels themselves run in `test_gpu_*`, on a GPU.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
from cuda_driver import FakeDriver, use_fake_driver
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

import specdec
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.model.effort import resolve_efforts
from specdec.model.loaded import Model
from specdec.runtimes.base import Planned, Rows
from specdec.runtimes.mlx.state import AHEAD, ENDS, MOST_AHEAD, SHOWS
from specdec.store import Store, convert

mx: Any = pytest.importorskip("mlx.core")


@pytest.fixture(scope="module", params=["float16", "quantised"])
def made(request, tmp_path_factory):
    """A runtime and its driver."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    if request.param == "quantised":
        store = convert(quantised_source(quantised_config(max_context=512), "q4_k"), folder, quantised="keep")
    else:
        store = convert(SyntheticSource(tiny_config(max_context=512), dtype="float16"), folder)
    with pytest.MonkeyPatch.context() as patch:
        driver = use_fake_driver(patch)
        from specdec.runtimes.mlx.runtime import MlxRuntime

        yield MlxRuntime(Store.open(store, verify=False)), driver


def rows_of(runtime: Any, tokens: list[int], held: Any = None, **options: Any) -> Rows:
    held = runtime.new_cache(40) if held is None else held
    return Rows(held, tokens, resolve_efforts(options.pop("effort", 1.0), runtime.config), **options)


def fresh(driver: FakeDriver) -> None:
    driver.launched.clear()
    driver.told.clear()
    driver.tokens.clear()
    driver.shortened = 99


def test_it_says_that_it_chooses(made):
    runtime, _ = made
    assert runtime.info.chooses
    assert runtime.info.most_ahead == MOST_AHEAD


def test_a_launch_goes_ahead_with_what_it_chooses(made):
    runtime, driver = made
    fresh(driver)
    driver.tokens += [3, 4, 5, 6]
    rows = rows_of(runtime, [9], logits="choices", ahead=3, ends=frozenset({11, 2}))
    (result,) = runtime.forward([rows])
    assert [choice.token for choice in result.choices] == [3, 4, 5, 6]
    assert rows.cache.length == 4
    assert result.logits.shape == (0, runtime.config.vocab_size)
    (state,) = driver.told
    assert [state[SHOWS], state[AHEAD]] == [1, 3]
    assert state[ENDS : ENDS + 3].tolist() == [3, 12, 0]
    assert len(driver.launched) == 1
    one = result.choices[0]
    assert (one.highest, one.margin, one.top_probability) == (3.0, 2.0, 0.5)
    assert one.entropy == pytest.approx(math.log(2.0) + 0.25)


def test_a_launch_that_ended_early_counts_what_it_did(made):
    runtime, driver = made
    fresh(driver)
    driver.shortened = 2
    rows = rows_of(runtime, [9], logits="choices", ahead=9)
    (result,) = runtime.forward([rows])
    assert len(result.choices) == rows.cache.length == 2


def test_no_further_than_the_cache_goes(made):
    runtime, driver = made
    fresh(driver)
    rows = rows_of(runtime, [9], runtime.new_cache(5), logits="choices", ahead=15)
    assert len(runtime.forward([rows])[0].choices) == rows.cache.length == 5


def test_sequences_go_ahead_together_or_not_at_all(made):
    runtime, driver = made
    fresh(driver)
    both = [rows_of(runtime, [1], logits="choices", ahead=count) for count in (5, 3)]
    first, second = runtime.forward(both)
    assert len(first.choices) == len(second.choices) == 4
    fresh(driver)
    mixed = [rows_of(runtime, [1], logits="choices", ahead=5), rows_of(runtime, [1, 2])]
    chosen, shown = runtime.forward(mixed)
    assert len(chosen.choices) == 1
    assert shown.logits.shape == (2, runtime.config.vocab_size)
    assert [driver.told[-1][SHOWS], driver.told[-1][AHEAD]] == [2, 0]
    many = [rows_of(runtime, [1], logits="choices", ahead=5) for _ in range(20)]
    assert {len(one.choices) for one in runtime.forward(many)} == {1}


def test_logits_are_read_where_they_are_wanted(made):
    runtime, driver = made
    fresh(driver)
    (result,) = runtime.forward([rows_of(runtime, [1, 2, 3])])
    assert result.choices is None
    assert np.array_equal(result.logits, np.tile(np.arange(runtime.config.vocab_size, dtype=np.float32), (3, 1)))
    assert driver.told[-1][SHOWS] == 0
    (result,) = runtime.forward([rows_of(runtime, list(range(1, 30)), logits="none")])
    assert result.logits.shape[0] == 0
    assert len(driver.told) == 3  # steps of 16 rows


def test_a_launch_gets_the_arrays_of_its_sequence(made):
    runtime, driver = made
    fresh(driver)
    held = [runtime.new_cache(300), runtime.new_cache(300)]
    for one in held:
        runtime.forward([rows_of(runtime, [1], one)])
    names = {name for name, _, _ in driver.launched}
    (_, first, sizes), (_, second, _) = driver.launched
    assert len(names) == 1
    assert sizes == [runtime.config.num_layers, 2, runtime.config.num_kv_heads, 256, runtime.config.head_dim]
    assert first[1] == held[0].address != held[1].address == second[1]
    assert first[:1] + first[2:] == second[:1] + second[2:]  # all else is the model's
    assert len(set(first)) == 10
    before = held[0].address
    runtime.forward([rows_of(runtime, [1] * 260, held[0])])  # it grows
    assert held[0].address != before
    assert driver.launched[-1][1][1] == held[0].address


def test_kinds_are_compiled_before_they_run(made):
    runtime, _ = made
    full = resolve_efforts(1.0, runtime.config)
    view = next(iter(runtime.views()))
    runtime.compile([Planned(1, full), Planned(5, full), Planned(1, full, view)])
    kinds = set(runtime._transformer.whole._kernels)
    assert {rows for _, _, rows, _, _ in kinds} >= {1, runtime._transformer.row_step(5), 16}
    with pytest.raises(UnknownNameError, match="int5"):
        runtime.compile([Planned(1, full, "int5")])


def test_views_are_late_until_they_are_needed(made):
    runtime, _ = made
    name = runtime.info.auto_draft[0]
    late = runtime.views()[name].late
    assert late is not None
    assert 0 < late.view_s <= late.exact_s
    runtime.prepare(name)
    assert runtime.views()[name].late is None


def test_a_view_is_made_once_whoever_asks_for_it(made, monkeypatch):
    """A thread that waits while another makes it finds tables that refer to it."""
    runtime, _ = made
    name = runtime.info.auto_draft[0]
    runtime._prepared.discard(name)
    packed: list[Any] = []
    monkeypatch.setattr(runtime._loader, "int4", lambda linear, **_: packed.append(linear))
    views, begun = runtime.views, threading.Semaphore(0)
    monkeypatch.setattr(runtime, "views", lambda: (begun.release(), views())[1])
    with runtime._lock:
        others = [threading.Thread(target=runtime.prepare, args=(name,)) for _ in range(3)]
        for one in others:
            one.start()
            begun.acquire()
        runtime.prepare(name)
    for one in others:
        one.join()
    assert len(packed) == (0 if name == "nested" else len(runtime._transformer.linears))


def test_a_pass_that_fails_is_waited_for(made, monkeypatch):
    """Its caller may free memory that a launch uses."""
    runtime, driver = made
    fresh(driver)
    waited: list[int] = []
    monkeypatch.setattr(driver, "wait", lambda: waited.append(len(driver.launched)))
    monkeypatch.setattr(driver, "read", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runtime.forward([rows_of(runtime, [9])])
    assert waited == [1]


def test_greedy_answers_ask_for_choices(made):
    runtime, driver = made
    fresh(driver)
    model = Model(runtime)
    result = specdec.generate(model, [1, 2, 3], max_tokens=30, speculate=False)
    assert result.tokens == [7] * 30
    shows = {int(state[SHOWS]) for state in driver.told[1:]}
    assert shows == {1}
    assert len(driver.told) < 12
    with pytest.raises(InvalidArgumentError, match="single row"):
        runtime.forward([rows_of(runtime, [1, 2], logits="choices", ahead=1)])
