"""Threads of the native runtime: results do not depend on them, and the default number is measured once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from synthetic import quantised_config, quantised_source

from specdec.cli import doctor
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.native import threads
from specdec.runtimes.native.runtime import NativeRuntime
from specdec.runtimes.native.threads import ThreadChoice, candidates, choose, kept_choices, settle_threads
from specdec.store import Store, convert

TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 47, 40)]


def outputs(runtime: NativeRuntime, view: str, effort: float) -> list[np.ndarray]:
    """Logits of passes over 1 to 20 rows."""
    found = []
    for rows in (1, 5, 9, 16, 20):
        cache = runtime.new_cache(64)
        forward_one(runtime, TOKENS[:10], cache, effort=EffortSchedule(1.0), logits="last")
        found.append(
            forward_one(runtime, TOKENS[10 : 10 + rows], cache, effort=EffortSchedule(effort), view=view).logits
        )
    return found


@pytest.mark.parametrize("types", [(), ("q4_k", "q4_k", "q6_k"), ("q8_0", "q5_0")])
def test_sixteen_threads_give_the_bits_of_one(
    store_of: Callable[..., Any], tmp_path: Any, types: tuple[str, ...]
) -> None:
    """More threads than matrices have tiles: products are cut by inputs, and draft tiles are narrower."""
    store = store_of("llama")
    if types:
        source = quantised_source(quantised_config(hidden_size=768), *types)
        store = Store.open(convert(source, tmp_path / "store", quantised="keep"), verify=False)
    one, sixteen = (NativeRuntime(store, threads=count) for count in (1, 16))
    switched = NativeRuntime(store, threads=16)
    switched._model.set_threads(3)  # weights stay cut for 16
    assert switched.threads == 3
    for view in ("exact", *one.views()):
        for effort in (1.0, 0.5):
            wanted = outputs(one, view, effort)
            for other in (sixteen, switched):
                assert all(np.array_equal(a, b) for a, b in zip(wanted, outputs(other, view, effort), strict=True))


@pytest.mark.parametrize(
    ("step_s", "expected"),
    [
        ({16: 1.0, 12: 1.0, 8: 2.0}, 16),  # all, where they do no harm
        ({16: 1.04, 12: 1.0, 8: 2.0}, 16),
        ({16: 1.3, 12: 1.0, 8: 1.02}, 12),
        ({16: 3.0, 12: 2.0, 8: 1.0, 4: 1.5}, 8),
    ],
)
def test_fewer_threads_are_taken_where_a_step_gains(step_s: dict[int, float], expected: int) -> None:
    assert choose(step_s) == expected


def test_candidates_fall_from_all_cores() -> None:
    assert candidates(16) == [16, 12, 8, 6, 4]
    assert candidates(3) == [3, 2, 1]


class Machine:
    """Steps whose time depends on the number of threads; a clock that they move."""

    def __init__(self, step_s: dict[int, float]) -> None:
        self.step_s, self.now, self.threads, self.steps = step_s, 0.0, 0, 0

    def set_threads(self, count: int) -> None:
        self.threads = count

    def step(self) -> None:
        self.steps += 1
        self.now += self.step_s[self.threads]

    def settle(self, store: Any, build: str = "a", cores: int = 4) -> int:
        settle_threads(store, build, cores, self.set_threads, self.step)
        return self.threads


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Machine:
    found = Machine({4: 0.02, 3: 0.01, 2: 0.015, 1: 0.03})
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: found.now)
    return found


def test_the_choice_is_measured_once_and_kept(machine: Machine, store_of: Callable[..., Any]) -> None:
    store = store_of("llama")
    assert machine.settle(store) == 3
    steps = machine.steps
    assert steps > 0
    machine.threads = 0
    assert machine.settle(store) == 3
    assert machine.steps == steps  # read, not measured
    (kept,) = kept_choices()
    assert (kept.threads, kept.cores) == (3, 4)
    assert kept.step_s[4] == pytest.approx(0.02)
    assert machine.settle(store, build="b") == 3
    assert machine.steps > steps  # another build


def test_a_damaged_file_is_measured_again(machine: Machine, store_of: Callable[..., Any]) -> None:
    store = store_of("llama")
    machine.settle(store)
    (file,) = threads.paths.home().glob("costs/threads-*.json")
    for text in ("", "[]", '{"format": 1}', file.read_text().replace('"threads": 3', '"threads": 9')):
        file.write_text(text)
        before = machine.steps
        assert machine.settle(store) == 3
        assert machine.steps > before


def test_two_cores_are_taken_unmeasured(machine: Machine, store_of: Callable[..., Any]) -> None:
    machine.settle(store_of("llama"), cores=2)
    assert machine.steps == 0
    assert kept_choices() == []


def test_the_runtime_takes_what_was_measured(
    store_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("specdec.runtimes.native.runtime.usable_cores", lambda: 4)
    monkeypatch.setattr(threads, "choose", lambda step_s: min(step_s))
    runtime = NativeRuntime(store_of("llama"))
    assert runtime.threads == runtime.info.threads == 1
    assert sorted(kept_choices()[0].step_s) == [1, 2, 3, 4]
    assert NativeRuntime(store_of("llama"), threads=4).threads == 4  # what the user says is taken


def test_doctor_shows_what_was_measured() -> None:
    choice = ThreadChoice("some-model", 3, 4, {4: 0.02, 3: 0.01})
    lines = list(doctor._thread_lines({"cores": 4, "measured": [asdict(choice)]}))
    assert lines[0].endswith("4 physical cores may be used")
    assert "3 for some-model (ms a token by threads: 4: 20.00, 3: 10.00)" in lines[1]
    (line,) = doctor._thread_lines({"cores": 4, "measured": []})
    assert "the first load of a model measures" in line
    (line,) = doctor._thread_lines({"cores": 2, "measured": []})
    assert "measures" not in line
