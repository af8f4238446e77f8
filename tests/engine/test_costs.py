"""What passes cost: tables that cannot be, measuring on a busy machine, and what is kept from process to process."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import PASS_S, ROW_S, STEP_S, scripted_model
from synthetic import synthetic_source

import specdec
from specdec.engine import cost_file, costs, measure_costs
from specdec.engine.cost_join import disagreement, joined
from specdec.engine.measure_costs import measure
from specdec.engine.plausible import faults, isotonic, made_plausible
from specdec.engine.policy import CostTable
from specdec.model.effort import EffortSchedule
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert

STEP = ("effort", "int4", 0.5)
RIGHT = CostTable(
    verify_s={1: 1.0, 3: 1.2, 5: 1.4, 9: 2.0},
    draft_s={("effort", "int4", 0.2): 0.2, ("effort", "int4", 0.5): 0.3, ("effort", "int4", 1.0): 0.5},
)


def changed(table: CostTable, **factors: float) -> CostTable:
    """The table with costs multiplied: `rows3=2.0`, `step05=3.0`."""
    verify_s, draft_s = dict(table.verify_s), dict(table.draft_s)
    for name, factor in factors.items():
        if name.startswith("rows"):
            verify_s[int(name[4:])] *= factor
        else:
            draft_s["effort", "int4", int(name[4:]) / 10] *= factor
    return replace(table, verify_s=verify_s, draft_s=draft_s)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does nothing else, whatever this one does."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


# Tables that cannot be.


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (changed(RIGHT, rows1=3.0), "3 rows cost less than 1"),
        (changed(RIGHT, rows9=0.5), "9 rows cost less than 5"),
        (changed(RIGHT, rows5=20.0), "5 rows cost more than as many passes"),
        (changed(RIGHT, step02=2.0), "a draft step at effort int4 0.2 costs more than one at effort 0.5"),
        (changed(RIGHT, step10=10.0), "a draft step at effort int4 1 costs 5 passes"),
        (changed(RIGHT, step02=0.001), "a draft step at effort int4 0.2 costs 0.0002 passes"),
    ],
)
def test_impossible_tables_are_found_and_made_plausible(table: CostTable, fault: str) -> None:
    assert fault in faults(table)
    made = made_plausible(table)
    assert not faults(made)
    assert list(made.verify_s) == sorted(made.verify_s)
    moved = max(abs(math.log(made.verify_s[rows] / seconds)) for rows, seconds in table.verify_s.items())
    assert max(made.verify_spread.values()) >= moved - 1e-9  # what was moved is as uncertain


def test_what_is_possible_stays_as_it_is() -> None:
    assert not faults(RIGHT)
    assert not faults(changed(RIGHT, rows3=0.81))  # a little less than one row: noise
    made = made_plausible(RIGHT)
    assert made.verify_s == pytest.approx(dict(RIGHT.verify_s))
    assert made.draft_s == pytest.approx(dict(RIGHT.draft_s))


times = st.floats(1e-6, 1e3)


@given(st.lists(times, min_size=4, max_size=4), st.lists(times, min_size=3, max_size=3))
def test_any_table_is_made_plausible(passes: list[float], steps: list[float]) -> None:
    table = CostTable(
        verify_s=dict(zip((1, 3, 5, 9), passes, strict=True)),
        draft_s={("effort", "int4", effort): s for effort, s in zip((0.2, 0.5, 1.0), steps, strict=True)},
    )
    made = made_plausible(table)
    assert not faults(made)
    assert made.verify_s.keys() == table.verify_s.keys()
    assert made.draft_s.keys() == table.draft_s.keys()


def test_violators_are_pooled_by_weight() -> None:
    assert isotonic([1, 3, 2, 4], [1, 1, 1, 1]) == [1, 2.5, 2.5, 4]
    assert isotonic([3, 2, 1], [1, 1, 1]) == [2, 2, 2]
    assert isotonic([3, 0], [1, 0.5]) == pytest.approx([0.6, 0.6])  # four times the weight
    assert isotonic([], []) == []


# Measuring.


def scripted_costs(clock, slow: dict[int, float] | None = None, **info: object) -> CostTable:
    """Measure the scripted model; `slow` has factors for its passes, by their number."""
    model = scripted_model(clock, stalls=slow or {})
    model.runtime.info = replace(model.runtime.info, **info)
    return measure(model, EffortSchedule, [STEP])


TRUE = {rows: PASS_S + ROW_S * (rows - 1) for rows in measure_costs.ROWS}


def test_a_quiet_machine_is_measured_exactly(clock) -> None:
    table = scripted_costs(clock)
    assert table.verify_s == TRUE
    assert table.draft_s == {STEP: STEP_S * 0.5}
    assert set(table.verify_spread.values()) == {measure_costs._LEAST_SPREAD}


def test_stalls_do_not_count_but_tell(clock) -> None:
    """The first pass is the context, the second a draft step that warms up; then rounds of five."""
    table = scripted_costs(clock, {3: 30.0, 9: 2.0, 15: 5.0, 20: 3.0, 23: 2.0, 28: 2.0, 33: 2.0})
    assert table.verify_s == TRUE
    assert max(table.verify_spread.values()) > 2 * measure_costs._LEAST_SPREAD


def test_what_is_compiled_first_is_not_a_cost(clock) -> None:
    """Every first pass over so many rows takes a minute; what is kept is what the next one takes."""
    table = scripted_costs(clock, dict.fromkeys((2, 3, 4, 5), 60 / PASS_S), compiles=True)
    assert table.verify_s == TRUE
    assert table.draft_s == {STEP: STEP_S * 0.5}


def test_an_impossible_table_is_measured_again(clock) -> None:
    """Single rows take three times as long in all of the first rounds: more rows are cheaper."""
    first = {2 + 5 * index + 1: 3.0 for index in range(measure_costs._SETTLED_ROUNDS)}
    assert scripted_costs(clock, first).verify_s == TRUE


def test_a_table_that_stays_impossible_is_made_plausible(clock) -> None:
    table = scripted_costs(clock, {2 + 5 * index + 1: 3.0 for index in range(100)})
    assert not faults(table)
    assert table.verify_s[1] == pytest.approx(table.verify_s[3])
    assert table.verify_spread[1] > 0.4  # and says that nobody knows


def test_a_pass_that_does_not_get_the_processor_is_uncertain(clock, monkeypatch) -> None:
    for share, least in ((0.5, 0.3), (1.0, 0.0)):
        monkeypatch.setattr(time, "process_time", lambda share=share: share * clock.now_s * 2)
        spread = max(scripted_costs(clock, threads=2).verify_spread.values())
        assert spread == pytest.approx(max(least, measure_costs._LEAST_SPREAD), abs=0.06)


def test_a_crowded_machine_is_uncertain(clock, monkeypatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1e3, 0.0, 0.0), raising=False)
    assert min(scripted_costs(clock).verify_spread.values()) == measure_costs._CROWDED_SPREAD


# Two tables.


def test_tables_of_different_moments_are_joined_by_their_ratios() -> None:
    slow = replace(
        RIGHT,
        verify_s={rows: 3 * s for rows, s in RIGHT.verify_s.items()},
        draft_s={key: 3 * s for key, s in RIGHT.draft_s.items() if key != STEP},
    )
    table = joined(RIGHT, slow)
    assert table.verify_s == pytest.approx(dict(slow.verify_s))
    assert table.draft_s[STEP] == pytest.approx(3 * RIGHT.draft_s[STEP])
    assert max(table.verify_spread.values()) < 0.1  # twice as much is known
    assert disagreement(RIGHT, slow) == pytest.approx(0, abs=1e-9)


def test_tables_that_disagree_are_uncertain() -> None:
    other = changed(RIGHT, rows3=1.5, rows5=1.5, rows9=2.0)
    table = joined(RIGHT, other)
    assert max(table.verify_spread.values()) > 0.15
    assert disagreement(RIGHT, changed(RIGHT, rows1=0.4)) > 0.6
    vague = replace(changed(RIGHT, rows1=0.4), verify_spread=dict.fromkeys(RIGHT.verify_s, 0.5))
    assert disagreement(RIGHT, vague) < 0.3  # who knows nothing contradicts nobody


# What is kept.


@pytest.fixture
def stored(tmp_path, home) -> specdec.Model:
    """A model with a store, in a cache folder of its own."""
    store = Store.open(convert(synthetic_source(), tmp_path / "store"))
    return specdec.Model(create_runtime("auto", store), store=store)


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """Where costs of scripted models are kept, which have no store."""
    file = tmp_path / "costs" / "scripted.json"
    monkeypatch.setattr(costs, "cost_file", lambda _: file)
    return file


def kept(file: Path) -> CostTable:
    return cost_file.read_costs(file)


def test_costs_are_measured_once_and_kept(stored, home, monkeypatch) -> None:
    specdec.generate(stored, [1], max_tokens=4)
    (file,) = (home / "costs").iterdir()
    table = kept(file)
    assert set(table.verify_s) >= {1, 3, 5, 9}
    assert {effort for _, _, effort in table.draft_s} >= {0.2, 0.5, 1.0}
    monkeypatch.setattr(costs, "measure", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(costs, "_is_doubtful", lambda _: False)  # on a busy machine it may be
    again = specdec.Model(stored.runtime, store=stored.store)
    specdec.generate(again, [1], max_tokens=4)
    assert set(again.memory.costs.table.verify_s) == set(table.verify_s)


def test_costs_of_a_part_of_a_model_are_its_own(stored, home) -> None:
    specdec.generate(stored, [1], max_tokens=4)
    part = Store.open(stored.store.path, load_share=0.5)
    specdec.generate(specdec.Model(create_runtime("auto", part), store=part), [1], max_tokens=4)
    assert len(list((home / "costs").iterdir())) == 2


def test_kept_costs_are_the_same_and_age(tmp_path, monkeypatch) -> None:
    file = tmp_path / "costs.json"
    cost_file.write_costs(file, replace(RIGHT, verify_spread=dict.fromkeys(RIGHT.verify_s, 0.05)))
    young = kept(file)
    assert (young.verify_s, young.draft_s) == (RIGHT.verify_s, RIGHT.draft_s)
    assert max(young.verify_spread.values()) == pytest.approx(0.05, abs=0.001)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 100 * 86400)
    assert min(kept(file).verify_spread.values()) > 0.15


def entry(**values: object) -> str:
    return json.dumps({"format": 2, "at": 0, "verify": [[1, 1.0, 0.1]], "draft": []} | values)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{}",
        "[1]",
        entry(format=1),
        entry(at="yesterday"),
        entry(verify=[["x", 1, 0.1]]),
        entry(verify=[[1, -1.0, 0.1]]),
        entry(verify=[[1, 1e999, 0.1]]),
        entry(verify=[[1, 1.0]]),
        entry(verify=[[1, 1.0, 0.1], [3, 0.3, 0.1]]),  # more rows, cheaper
        entry(draft=[["effort", "int4", 0.5, 90.0, 0.1]]),
    ],
)
def test_kept_costs_that_make_no_sense_are_none(tmp_path, damage) -> None:
    file = tmp_path / "costs.json"
    file.write_text(damage)
    assert not kept(file).verify_s


def test_damaged_costs_are_measured_again(stored, home) -> None:
    specdec.generate(stored, [1], max_tokens=4)
    (file,) = (home / "costs").iterdir()
    file.write_text("[1]")
    specdec.generate(specdec.Model(stored.runtime, store=stored.store), [1], max_tokens=4)
    assert set(kept(file).verify_s) >= {1, 3, 5, 9}


def answered(clock, **options: object):
    model = scripted_model(clock)
    model.memory.costs.is_measured_anew = bool(options.pop("remeasure", False))
    specdec.generate(model, [1], max_tokens=120, drafter="effort", **options)
    return model


WRONG = CostTable(
    verify_s={1: 3 * PASS_S, 3: 3.1 * PASS_S, 5: 3.2 * PASS_S, 9: 3.4 * PASS_S},
    draft_s={("effort", "int4", effort): STEP_S * effort for effort in (0.2, 0.5, 1.0)},
    verify_spread=dict.fromkeys((1, 3, 5, 9), 0.05),
)


def test_what_an_answer_has_taught_is_kept_and_doubted_costs_are_measured_again(clock, file) -> None:
    """Passes were kept as three times as dear, beside draft steps that were not."""
    cost_file.write_costs(file, WRONG)
    model = answered(clock)
    table = kept(file)
    plain, several = table.verify_s[1], [s for rows, s in table.verify_s.items() if table.verify_spread[rows] < 0.1]
    assert plain == pytest.approx(PASS_S, rel=0.15)
    assert max(several) < 2 * PASS_S
    assert model.memory.costs.is_doubtful
    specdec.generate(model, [1], max_tokens=20, drafter="effort")
    assert not model.memory.costs.is_doubtful
    ratio = model.memory.costs.table.verify_s[9] / model.memory.costs.table.verify_s[1]
    assert ratio == pytest.approx(TRUE[9] / TRUE[1], rel=0.2)  # though it was never seen


def test_remeasuring_forgets_what_is_kept(clock, file) -> None:
    cost_file.write_costs(file, WRONG)
    model = answered(clock, remeasure=True)
    assert model.memory.costs.table.verify_s == TRUE
    assert kept(file).verify_s[9] / kept(file).verify_s[1] == pytest.approx(TRUE[9] / TRUE[1], rel=0.1)


def test_doubtful_costs_are_measured_again_and_joined(clock, file) -> None:
    cost_file.write_costs(file, replace(WRONG, verify_spread=dict.fromkeys((1, 3, 5, 9), 0.6)))
    table = answered(clock).memory.costs.table
    assert {rows: s / table.verify_s[1] for rows, s in table.verify_s.items()} == pytest.approx(
        {rows: s / PASS_S for rows, s in TRUE.items()}, rel=0.1
    )


def test_nothing_is_measured_again_while_others_wait_for_passes(clock, file) -> None:
    """A batch measures when nothing runs: streams do not stall for it."""
    model = scripted_model(clock)
    memory = model.memory.costs
    with specdec.Batch(model) as batch:
        list(batch.submit([1], max_tokens=3))
        assert memory.table.verify_s
        long = batch.submit([2], max_tokens=400)
        next(long)
        memory.is_doubtful = True
        passes = len(memory.table.draft_s)
        list(batch.submit([3], max_tokens=3, draft_effort=0.77))
        assert memory.is_doubtful
        assert len(memory.table.draft_s) == passes
        list(long)
        list(batch.submit([3], max_tokens=3, draft_effort=0.77))
        assert not memory.is_doubtful
        assert ("effort", "int4", 0.77) in memory.table.draft_s


def test_further_draft_steps_are_measured_beside_passes_that_are_known(clock, file) -> None:
    """The machine is three times as slow when the new effort is measured."""
    fast = CostTable(verify_s={rows: s / 3 for rows, s in TRUE.items()}, draft_s={})
    cost_file.write_costs(file, fast)
    model = scripted_model(clock)
    specdec.generate(model, [1], max_tokens=2, drafter="effort", draft_effort=0.5)
    table = model.memory.costs.table
    assert table.draft_s["effort", "int4", 0.5] / table.verify_s[1] == pytest.approx(0.5 * STEP_S / PASS_S, rel=0.01)


def test_costs_are_not_written_at_every_answer(clock, file, monkeypatch) -> None:
    written = []
    monkeypatch.setattr(costs, "write_costs", lambda *_: written.append(1))
    model = answered(clock)
    for _ in range(5):
        specdec.generate(model, [1], max_tokens=8)
    assert len(written) == 2  # measured, and after the first answer
    model.memory.costs.keep_from_s = 0.0
    specdec.generate(model, [1], max_tokens=8)
    assert len(written) == 3


def test_costs_that_cannot_be_kept_do_not_fail_an_answer(clock, file) -> None:
    file.parent.write_text("in the way of the folder")
    assert answered(clock).memory.costs.table.verify_s == TRUE


def test_nothing_is_kept_where_that_is_not_wanted(clock, file) -> None:
    model = scripted_model(clock)
    model.memory.costs.is_kept = False
    specdec.generate(model, [1], max_tokens=40, drafter="effort")
    assert model.memory.costs.table.verify_s == TRUE
    assert not file.exists()


def test_policies_that_learn_nothing_measure_nothing(stored, home) -> None:
    specdec.generate(stored, [1], max_tokens=4, policy="fixed")
    specdec.generate(stored, [1], max_tokens=4, speculate=False)
    assert not (home / "costs").exists()
