"""Draft views that a runtime makes when a pass first needs them: who waits for them, and what is known of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted_model import PASS_S, STEP_S, scripted_model

import specdec
from specdec.engine import cost_file, costs
from specdec.model.loaded import Model
from specdec.runtimes.base import Late, ViewInfo

MAKING_S = 50 * PASS_S


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where costs of scripted models are kept, which have no store."""
    file = tmp_path / "costs" / "scripted.json"
    monkeypatch.setattr(costs, "cost_file", lambda _: file)
    return file


def late_model(clock, monkeypatch: pytest.MonkeyPatch, late: Late) -> tuple[Model, list[str]]:
    """A scripted model whose view is late and takes a while to make; and what was made."""
    model, made = scripted_model(clock), []
    runtime = model.runtime

    def prepare(view: str, *, progress=None) -> None:
        if view not in made:
            clock.now_s += MAKING_S
            made.append(view)

    def forward(batch, *, view="exact", states=False):
        if view != "exact":
            prepare(view)
        return type(runtime).forward(runtime, batch, view=view, states=states)

    monkeypatch.setattr(runtime, "views", lambda: {"int4": ViewInfo(name="int4", late=None if made else late)})
    monkeypatch.setattr(runtime, "prepare", prepare)
    monkeypatch.setattr(runtime, "forward", forward)
    return model, made


def test_a_step_saves_no_more_than_the_time_of_its_bytes() -> None:
    late = Late(exact_s=0.4, view_s=0.1)
    assert late.least_s(1.0, 1.0) == pytest.approx(0.7)
    assert late.least_s(1.0, 0.5) == pytest.approx(0.65)
    assert late.least_s(0.2, 1.0) == pytest.approx(0.1)  # but its own bytes take their time
    assert Late(exact_s=0.1, view_s=0.3).least_s(1.0, 1.0) == 1.0


def test_a_view_that_cannot_pay_is_not_made(clock, file, monkeypatch) -> None:
    """Whatever the steps cost in truth: 3 % is all that the memory could save."""
    model, made = late_model(clock, monkeypatch, Late(exact_s=0.04 * PASS_S, view_s=0.01 * PASS_S))
    wanted = specdec.generate(scripted_model(clock), [1], max_tokens=300, speculate=False).tokens
    assert specdec.generate(model, [1], max_tokens=300, drafter="auto").tokens == wanted
    assert made == []
    kept = cost_file.read_costs(file)
    assert kept.verify_s
    assert kept.draft_s == {}  # what was bounded is not kept as if it were measured


def test_a_view_that_may_pay_is_made_when_it_is_first_wanted(clock, file, monkeypatch) -> None:
    model, made = late_model(clock, monkeypatch, Late(exact_s=0.95 * PASS_S, view_s=0.2 * PASS_S))
    result = specdec.generate(model, [1], max_tokens=300, drafter="auto")
    assert made == ["int4"]
    assert result.stats.drafted > 0
    # Making it is part of the answer's time, and not of the drafts'.
    assert result.stats.draft_s < MAKING_S
    assert result.stats.decode_s > MAKING_S
    known = model.memory.costs.table.draft_s
    specdec.generate(model, [1], max_tokens=20, drafter="auto")
    assert model.memory.costs.table.draft_s["effort", "int4", 0.5] == pytest.approx(STEP_S * 0.5, rel=0.3)
    assert ("effort", "int4", 0.5) not in known or made == ["int4"]


def test_a_policy_that_does_not_learn_waits_for_its_view(clock, file, monkeypatch) -> None:
    model, made = late_model(clock, monkeypatch, Late(exact_s=0.04 * PASS_S, view_s=0.01 * PASS_S))
    told: list[str] = []
    answer = specdec.stream(
        model, [1], max_tokens=20, drafter="effort", policy="fixed", progress=lambda *a: told.append(a[0])
    )
    assert made == ["int4"]
    answer.close()


def test_a_drafter_that_was_asked_for_is_tried(clock, file, monkeypatch) -> None:
    model, made = late_model(clock, monkeypatch, Late(exact_s=0.04 * PASS_S, view_s=0.01 * PASS_S))
    result = specdec.generate(model, [1], max_tokens=40, drafter="effort")
    assert made == ["int4"]
    assert result.stats.drafted > 0
