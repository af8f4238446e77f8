"""What a model keeps between answers: costs, what drafters have read, and what each policy has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import fake_model
from specdec.policies import registry

import specdec
from specdec.drafters.base import LoadedModel
from specdec.engine.memory import Memory
from specdec.engine.policy import CostTable, DraftPlan, Knowledge, RoundState


class Counting:
    """A policy that counts the answers that it has learnt from."""

    def __init__(self, **_: Any) -> None:
        self.answers = 0

    def begin(self, knowledge: Knowledge) -> None:
        knowledge.memory["answers"] = self.answers = knowledge.memory.get("answers", 0) + 1

    def plan(self, state: RoundState) -> DraftPlan:
        return DraftPlan(num_draft_tokens=0, effort=1.0)

    def next_step(self, signals: Any) -> None:
        return None

    def observe(self, outcome: Any) -> None:
        pass

    def summary(self) -> Mapping[str, Any]:
        return {"answers": self.answers}


class Other(Counting):
    """The same under another name."""


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many answers a policy has seen after one more of a model."""
    for name, policy in (("counting", Counting), ("alias", Counting), ("other", Other)):
        monkeypatch.setitem(registry._registry._own, name, policy)

    def ask(model: specdec.Model, policy: Any) -> int:
        return int(specdec.generate(model, [1, 2], max_tokens=3, policy=policy).stats.policy["answers"])

    return ask


def test_each_policy_has_a_memory_of_its_own(counts: Any) -> None:
    model = fake_model()
    asked = ["counting", "other", "alias", "counting", "other"]
    assert [counts(model, policy) for policy in asked] == [1, 1, 2, 3, 2]
    assert counts(model, Other()) == 3
    assert counts(fake_model(), "counting") == 1
    assert {policy.__name__: kept for policy, kept in model.memory.policies.items()} == {
        "Counting": {"answers": 3},
        "Other": {"answers": 3},
    }


def test_a_fresh_memory_has_learnt_nothing_and_read_everything(counts: Any, tmp_path: Path) -> None:
    (tmp_path / "table").write_text("a text to look up")
    model = fake_model()
    first = model.memory
    assert counts(model, "counting") == 1
    model.memory = second = first.fresh()
    assert counts(model, "counting") == 1
    specdec.generate(model, [1], max_tokens=3, drafter=f"ngram:table={tmp_path / 'table'}", policy="fixed")
    assert len(first.drafters.tables) == len(second.drafters.tables) == 1
    model.memory = first
    assert counts(model, "counting") == 2
    assert second.policies[Counting] == {"answers": 1}


def test_costs_that_one_finds_the_other_knows() -> None:
    memory = Memory()
    other = memory.fresh()
    other.costs.table = CostTable(verify_s={1: 0.5})
    assert memory.costs.table.verify_s == {1: 0.5}
    assert Memory().costs.table.verify_s == {}


def test_another_model_is_loaded_once() -> None:
    model, loads = fake_model(), []
    small = fake_model(seed=3)

    def load(name: str) -> LoadedModel:
        loads.append(name)
        return LoadedModel(small.runtime, small.tokenizer)

    model.load_other = load
    for _ in range(2):
        specdec.generate(model, [1, 2], max_tokens=3, drafter="model:small", policy="fixed")
    assert loads == ["small"]
    assert list(model.memory.drafters.models) == ["small"]
