"""Costs of turns that a runtime drafts and verifies by itself: measured once, kept, and told to policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_runtime import ByteTokenizer, FakeRuntime

import specdec
from specdec.engine import costs
from specdec.engine.cost_file import read_costs, write_costs
from specdec.engine.cost_join import joined
from specdec.engine.measure_turns import PLAIN, TURN_WIDTHS, measure_turns, widths_of
from specdec.engine.plausible import made_plausible
from specdec.engine.policy import CostTable
from specdec.model.loaded import Model

PROMPT = list(b"the quick brown fox, the quick brown dog, the quick")
KNOWN = CostTable(verify_s={1: 0.01, 3: 0.012}, turn_s={1: 0.008, 4: 0.01})


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """Where costs of models without a store are kept."""
    file = tmp_path / "costs" / "fake.json"
    monkeypatch.setattr(costs, "cost_file", lambda _: file)
    return file


def model_of(recycles: int = 8) -> Model:
    return Model(FakeRuntime(seed=3, most_ahead=15, recycles=recycles), ByteTokenizer())


@pytest.mark.parametrize("recycles", [16, 8, 5])
def test_every_width_of_the_runtime_is_measured_and_a_plain_step(recycles) -> None:
    runtime = model_of(recycles).runtime
    found = measure_turns(runtime, runtime.config)
    assert set(found) == {PLAIN, *(width for width in TURN_WIDTHS if width <= recycles)}
    assert all(seconds > 0 for seconds in found.values())


def test_nothing_is_measured_without_turns_or_room() -> None:
    runtime = model_of().runtime
    assert widths_of(runtime, runtime.config) == [4, 8]
    assert widths_of(model_of(0).runtime, runtime.config) == []
    assert widths_of(runtime, replace(runtime.config, max_context=80)) == []


def test_an_answer_measures_them_once_and_the_next_process_reads_them(file, monkeypatch) -> None:
    model = model_of()
    specdec.generate(model, PROMPT, max_tokens=4)
    turn_s = model.memory.costs.table.turn_s
    assert set(turn_s) == {1, 4, 8}
    assert read_costs(file).turn_s == turn_s
    monkeypatch.setattr(costs, "measure_turns", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(costs, "_is_doubtful", lambda _: False)  # on a busy machine it may be
    specdec.generate(model, PROMPT, max_tokens=40)
    again = model_of()
    specdec.generate(again, PROMPT, max_tokens=4)
    assert again.memory.costs.table.turn_s == turn_s


@pytest.mark.parametrize("options", [{"temperature": 0.8, "seed": 1}, {"logprobs": 1}], ids=str)
def test_answers_that_need_logits_measure_no_turns(file, options) -> None:
    model = model_of()
    specdec.generate(model, PROMPT, max_tokens=4, **options)
    assert not model.memory.costs.table.turn_s


def test_costs_of_turns_stay_with_the_table(tmp_path) -> None:
    newer = CostTable(verify_s={1: 0.02, 3: 0.03})
    assert joined(KNOWN, newer).turn_s == KNOWN.turn_s
    assert joined(newer, KNOWN).turn_s == KNOWN.turn_s
    assert made_plausible(KNOWN).turn_s == KNOWN.turn_s
    kept = tmp_path / "costs.json"
    write_costs(kept, KNOWN)
    assert read_costs(kept).turn_s == KNOWN.turn_s
    kept.write_text(kept.read_text().replace("[4, 0.01]", "[4, -1.0]"))
    assert read_costs(kept) == CostTable()
