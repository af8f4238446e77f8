"""A policy's bug is its own, not the user's mistake: `PluginError` names it, and the command line ends with 1."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from fake_runtime import fake_model
from specdec.policies import registry
from specdec.policies.confidence import ConfidencePolicy
from specdec.policies.entropy import EntropyPolicy
from specdec.policies.fixed import FixedPolicy
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.heuristic import HeuristicPolicy

import specdec
from specdec.engine.policy import DraftPlan, InvalidArgumentError
from specdec.errors import PluginError, SpecdecError
from specdec.registry import Registry


@dataclass
class Faulty(FixedPolicy):
    """Fails in one method, or in its constructor."""

    where: str = "plan"

    def __post_init__(self):
        if self.where == "constructor":
            {}["missing"]
        if self.where not in ("plan", "next_step", "observe", "summary", "answer"):
            raise InvalidArgumentError(f"where must be a method, not {self.where!r}")

    def plan(self, state):
        if self.where == "answer":
            return 7
        return 1 // 0 if self.where == "plan" else super().plan(state)

    def next_step(self, signals):
        return 1 // 0 if self.where == "next_step" else super().next_step(signals)

    def observe(self, outcome):
        return 1 // 0 if self.where == "observe" else None

    def summary(self):
        return 1 // 0 if self.where == "summary" else {}


@pytest.fixture(autouse=True)
def policies(monkeypatch: pytest.MonkeyPatch) -> Registry:
    fresh: Registry = Registry("policy", "specdec.policies")
    fresh.register("faulty", Faulty)
    monkeypatch.setattr(registry, "_registry", fresh)
    return fresh


def test_plans_of_numpy(tmp_path: Path):
    class Numpy(FixedPolicy):
        def plan(self, state):
            return DraftPlan(num_draft_tokens=np.int64(3), effort=np.float32(0.5), at_once=np.int64(2))

    trace = tmp_path / "trace.jsonl"
    result = specdec.generate(fake_model(), [1, 2, 3], max_tokens=8, policy=Numpy(), drafter="effort", trace=trace)
    assert result.tokens == specdec.generate(fake_model(), [1, 2, 3], max_tokens=8, speculate=False).tokens
    assert json.loads(json.dumps(result.to_dict()))["stats"]["drafted"]


@pytest.mark.parametrize("kind", [GoodputPolicy, HeuristicPolicy, ConfidencePolicy, EntropyPolicy])
def test_parameters_of_numpy(kind):
    assert type(kind(longest=np.int64(5)).longest) is int


@pytest.mark.parametrize("where", ["plan", "next_step", "observe", "summary"])
def test_a_bug_is_named_with_its_place_and_its_cause(where):
    with pytest.raises(PluginError, match=rf"policy 'faulty' failed in {where}: ZeroDivisionError: .*") as caught:
        specdec.generate(fake_model(), [1], policy=f"faulty:where={where}")
    error = caught.value
    assert (error.kind, error.name) == ("policy", "faulty")
    assert isinstance(error, SpecdecError)
    assert isinstance(error, RuntimeError)
    assert not isinstance(error, ValueError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert f"{Path(__file__).name}, line " in str(error)


class Opaque(FixedPolicy):
    """Has anything in its summary."""

    says: object = None

    def summary(self):
        return {"this": Opaque.says}


@pytest.mark.parametrize("wrong", [object(), [1, [object()]], {"a": {"b": object()}}], ids=["itself", "list", "dict"])
def test_a_summary_that_is_not_json_is_the_policys_fault(monkeypatch, wrong):
    monkeypatch.setattr(Opaque, "says", wrong)
    with pytest.raises(PluginError, match="policy 'Opaque' failed in summary: TypeError: Object of type object is not"):
        specdec.generate(fake_model(), [1], policy=Opaque())


@pytest.mark.parametrize("says", [None, [1, 2.5, True], {"a": [{}]}, (1, 2), {1: "number"}], ids=str)
def test_a_summary_is_what_json_takes(monkeypatch, says):
    monkeypatch.setattr(Opaque, "says", says)
    assert specdec.generate(fake_model(), [1], policy=Opaque()).stats.policy == {"this": says}


def test_an_entry_that_is_not_a_constructor_is_named(policies):
    policies.register("text", "not a class")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="policy 'text' must be a class or function that makes it, not 'not a class'"):
        registry.create("text")


def test_a_wrong_answer_is_the_policys_fault():
    with pytest.raises(PluginError, match="policy 'faulty' gave a wrong answer: plan must answer a DraftPlan, not 7"):
        specdec.generate(fake_model(), [1], policy="faulty:where=answer")


def test_wrong_parameters_are_the_users_mistake_and_a_bug_in_the_constructor_is_not():
    with pytest.raises(InvalidArgumentError, match="policy 'faulty' refuses its parameters: where must be a method"):
        registry.create("faulty:where=here")
    with pytest.raises(PluginError, match="policy 'faulty' failed in its constructor: KeyError: 'missing'") as caught:
        registry.create("faulty:where=constructor")
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(("where", "code"), [("plan", 1), ("observe", 1), ("answer", 1), ("constructor", 1), ("x", 2)])
def test_the_command_line_tells_a_plugins_fault_from_a_mistake(capsys, text_model, where, code):
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", "--policy", f"faulty:where={where}")
    assert ran.code == code
    told = [line for line in ran.err.splitlines() if line.startswith("specdec: error: ")]
    assert len(told) == 1
    assert "policy 'faulty'" in told[0]
    assert "Traceback" not in ran.err
