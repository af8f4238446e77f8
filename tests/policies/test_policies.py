"""Policies by name, the fixed policy, and the rule that policies know nothing of models."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import specdec.policies
from fake_runtime import fake_model
from places import ROOT
from specdec.policies import registry
from specdec.policies.entropy import EntropyPolicy
from specdec.policies.fixed import FixedPolicy

import specdec
from specdec import registry as registry_module
from specdec.engine.policy import DraftOption, DraftPlan, Policy, RoundOutcome, RoundState, StepSignals
from specdec.errors import InvalidArgumentError, PluginError, UnknownNameError
from specdec.registry import Registry


def state(**values) -> RoundState:
    defaults = {
        "round_index": 0,
        "position": 5,
        "max_draft_tokens": 100,
        "draft_len": 4,
        "draft_effort": 0.15,
        "verify_effort": 1.0,
        "options": (DraftOption("effort", "bucket", takes_effort=True),),
    }
    return RoundState(**(defaults | values))


class Level:
    """A distribution with the given numbers."""

    entropy, top_probability, margin = 1.0, 0.5, 2.0


def signals(index: int = 0) -> StepSignals:
    return StepSignals(
        index=index,
        position=5 + index,
        effort=0.15,
        context_length=4 + index,
        drafter="effort",
        view="bucket",
        seconds=0.001,
        distribution=Level(),
    )


def outcome(**values) -> RoundOutcome:
    defaults = {
        "drafted": 4,
        "accepted": 2,
        "signals": (),
        "drafter": "effort",
        "view": "bucket",
        "context_length": 4,
        "draft_s": 0.1,
        "verify_s": 0.1,
        "round_s": 0.2,
    }
    return RoundOutcome(**(defaults | values))


def test_fixed_takes_length_and_effort_from_the_caller():
    policy = FixedPolicy()
    assert isinstance(policy, Policy)
    assert policy.plan(state()) == DraftPlan(num_draft_tokens=4, effort=0.15, at_once=4)
    assert policy.next_step(signals()) == 0.15
    policy.observe(outcome())
    assert policy.plan(state(draft_len=7, draft_effort=0.3)) == DraftPlan(num_draft_tokens=7, effort=0.3, at_once=7)
    assert policy.next_step(signals()) == 0.3


def test_fixed_prefers_its_own_parameters():
    policy = FixedPolicy(length=6, effort=0.25)
    assert policy.plan(state()) == DraftPlan(num_draft_tokens=6, effort=0.25, at_once=6)
    assert policy.next_step(signals()) == 0.25


@pytest.mark.parametrize("room", [0, 1, 3])
def test_fixed_respects_the_room(room):
    plan = FixedPolicy().plan(state(max_draft_tokens=room))
    assert (plan.num_draft_tokens, plan.at_once) == (room, max(1, room))


def test_create_reads_parameters():
    assert registry.create("fixed") == FixedPolicy()
    assert registry.create("fixed:") == FixedPolicy()
    assert registry.create("fixed:length=8") == FixedPolicy(length=8)
    assert registry.create(" fixed: length = 8 , effort = 0.5 ".strip()) == FixedPolicy(length=8, effort=0.5)
    assert registry.create("fixed:length=none,effort=1") == FixedPolicy(effort=1.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fixed:size=3", "policy 'fixed' has no parameter 'size': choose from length, effort"),
        ("fixed:length", "policy parameter 'length' must be written key=value"),
        ("fixed:length=", "must be written key=value"),
        ("fixed:length=2,length=3", "policy parameter 'length' is given twice"),
        ("fixed:length=0", "policy 'fixed' refuses its parameters: length must be .* at least 1, not 0"),
        ("fixed:length=2.5", "at least 1, not 2.5"),
        ("fixed:length=many", "at least 1, not 'many'"),
        ("fixed:length=true", "at least 1, not True"),
        ("fixed:effort=1.5", "effort must be a number above 0 and at most 1, not 1.5"),
        ("fixed:_current=1", "has no parameter '_current'"),
    ],
)
def test_create_refuses_wrong_parameters(spec, message):
    with pytest.raises(InvalidArgumentError, match=message):
        registry.create(spec)


def test_unknown_policy_lists_what_exists():
    with pytest.raises(UnknownNameError, match=r"unknown policy 'magic': choose from .*fixed") as caught:
        specdec.generate(fake_model(), [1], policy="magic")
    assert "fixed" in caught.value.known


def test_parameters_reach_the_engine():
    model = fake_model()
    specdec.generate(model, [1], max_tokens=9, policy="fixed:length=2,effort=0.75", draft_len=8, draft_effort=0.1)
    drafts = [one for one in model.runtime.passes if one[0] == "int4"]
    assert {effort for _, effort, _, _ in drafts} == {0.75}
    assert max(rows for view, _, _, rows in model.runtime.passes if view == "exact") == 3


@dataclass
class Sometimes(FixedPolicy):
    """Drafts in every second round."""

    def plan(self, state: RoundState) -> DraftPlan:
        plan = super().plan(state)
        return plan if state.round_index % 2 else DraftPlan(num_draft_tokens=0, effort=plan.effort)


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of its own for one test, in the place of the real one."""
    fresh: Registry = Registry("policy", "specdec.policies")
    fresh.register("fixed", FixedPolicy)
    monkeypatch.setattr(registry, "_registry", fresh)
    return fresh


def announce(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [EntryPoint(name, value, "specdec.policies") for name, value in values.items()]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points if group == "specdec.policies" else [])


def test_a_registered_policy_is_used(policies):
    policies.register("sometimes", Sometimes)
    result = specdec.generate(fake_model(), [1], max_tokens=12, policy="sometimes:length=3")
    assert 0 < result.stats.drafted_per_position[0] <= result.stats.rounds / 2


def test_registering_twice_raises(policies):
    with pytest.raises(InvalidArgumentError, match="policy 'fixed' is registered already"):
        policies.register("fixed", Sometimes)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a=b", "a,b"])
def test_names_that_could_not_be_written_are_refused(policies, name):
    with pytest.raises(InvalidArgumentError, match="must be one word"):
        policies.register(name, Sometimes)


def test_another_package_adds_a_policy(policies, monkeypatch):
    announce(monkeypatch, sometimes="test_policies:Sometimes")
    assert policies.names() == ["fixed", "sometimes"]
    assert isinstance(registry.create("sometimes:length=2"), Policy)


def test_the_packages_own_entry_point_is_no_duplicate(policies, monkeypatch):
    announce(monkeypatch, fixed="specdec.policies.fixed:FixedPolicy")
    assert registry.create("fixed") == FixedPolicy()


def test_two_packages_with_one_name(policies, monkeypatch):
    announce(monkeypatch, fixed="test_policies:Sometimes")
    with pytest.raises(InvalidArgumentError, match="policy 'fixed' is registered by 2 packages"):
        registry.create("fixed")


def test_a_package_that_does_not_load_is_named_and_disturbs_no_other(policies, monkeypatch):
    announce(monkeypatch, broken="no_such_package:Policy")
    assert registry.create("fixed") == FixedPolicy()
    with pytest.raises(PluginError, match="policy 'broken' cannot be loaded from no_such_package:Policy"):
        registry.create("broken")


def test_a_class_that_is_no_policy_is_refused(policies):
    policies.register("thing", dict)
    with pytest.raises(PluginError, match="policy 'thing' must have the methods plan, next_step and observe"):
        registry.create("thing")


def imports(path: Path) -> set[str]:
    """Names of the modules that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            found.add(str(node.module))
    return found


def is_ours(name: str) -> bool:
    return name == "specdec" or name.startswith("specdec.")


def test_policies_import_no_model_code():
    """Nothing but the standard library, each other and the contract, so a policy is testable with no engine."""
    folder = Path(specdec.policies.__file__).parent
    files = [path for path in folder.rglob("*.py") if path != folder / "registry.py"]
    assert any(path.parent.name == "goodput" for path in files)
    for path in files:
        for name in imports(path):
            if is_ours(name):
                known = name == "specdec.engine.policy" or name.startswith("specdec.policies.")
                assert known, f"{path.name} imports {name}"
            else:
                assert name.partition(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_the_policy_contract_imports_no_array_library_and_no_runtime():
    """Neither itself nor through what it imports."""
    waiting, seen = ["specdec.engine.policy"], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for name in imports(Path(importlib.util.find_spec(module).origin)):
            if not is_ours(name):
                assert name.partition(".")[0] in sys.stdlib_module_names, f"{module} imports {name}"
            elif name not in seen:
                waiting.append(name)
    assert seen == {"specdec.engine.policy", "specdec.checks", "specdec.errors"}


def test_policies_load_without_mlx_and_without_a_runtime():
    code = """
import sys
sys.modules["mlx"] = sys.modules["mlx.core"] = None
import specdec.policies.registry
assert specdec.policies.registry.create("goodput:explore=0.02").explore == 0.02
loaded = [name for name in sys.modules if name.startswith(("specdec.runtimes.", "specdec.kernels."))]
assert set(loaded) <= {"specdec.runtimes.base", "specdec.runtimes.timing"}, loaded
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_nothing_in_the_package_imports_a_policy_but_through_the_registry():
    package, own = Path(specdec.__file__).parent, Path(specdec.policies.__file__).parent
    for path in package.rglob("*.py"):
        if own not in path.parents:
            names = {name for name in imports(path) if name.startswith("specdec.policies")}
            assert names <= {"specdec.policies.registry"}, f"{path} imports {names}"


def test_built_in_policies_are_registered_once(monkeypatch):
    own = sorted(registry._registry._own)
    assert own == ["auto", "bandit", "confidence", "effort-entropy", "entropy", "fixed", "goodput", "heuristic"]
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert not set(metadata["project"].get("entry-points", {})) & {"specdec.policies", "specdec.drafters"}


def test_heuristic_grows_after_success_and_shrinks_after_failure():
    policy = registry.create("heuristic:length=4,longest=7")
    lengths = []
    for drafted, accepted in ((4, 4), (6, 5), (5, 5), (7, 7), (7, 0), (0, 0)):
        lengths.append(policy.plan(state()).num_draft_tokens)
        policy.observe(outcome(drafted=drafted, accepted=accepted))
    assert lengths == [4, 6, 5, 7, 7, 6]
    assert policy.plan(state(max_draft_tokens=2)).num_draft_tokens == 2


class At:
    """A distribution of one entropy and top probability."""

    margin = 1.0

    def __init__(self, entropy: float, top_probability: float = 0.5) -> None:
        self.entropy, self.top_probability = entropy, top_probability


def seen(distribution: object) -> StepSignals:
    return replace(signals(), distribution=distribution)


def test_confidence_stops_below_its_threshold():
    policy = registry.create("confidence:threshold=0.5,effort=0.3")
    assert policy.plan(state()).num_draft_tokens == 20
    assert policy.next_step(seen(At(1, 0.5))) == 0.3
    assert policy.next_step(seen(At(1, 0.49))) is None


def test_entropy_stops_where_the_bound_falls_and_adapts():
    policy = registry.create("entropy:gamma=0.2,threshold=0.5,target=0.8,step=0.1")
    policy.plan(state())
    # 1 - sqrt(0.2 H) falls below 0.5 at H = 1.25.
    assert policy.next_step(seen(At(1.2))) is not None
    assert policy.next_step(seen(At(1.3))) is None
    policy.observe(outcome(drafted=4, accepted=0))
    assert policy.threshold == pytest.approx(0.6)
    assert policy.next_step(seen(At(1.2))) is None
    for _ in range(20):
        policy.observe(outcome(drafted=4, accepted=4))
    assert policy.threshold == 0
    policy.observe(outcome(drafted=0, accepted=0))
    assert policy.threshold == 0


def test_effort_entropy_spends_effort_on_hard_tokens():
    policy = registry.create("effort-entropy:low=0.4,high=0.8,hard=2,stop=3")
    assert policy.plan(state()).effort == 0.8
    assert policy.plan(state(distribution=At(0.0))).effort == 0.4
    efforts = [policy.next_step(seen(At(entropy))) for entropy in (0.0, 1.0, 2.0, 3.0, 3.1)]
    assert efforts == [0.4, 0.6, 0.8, 0.8, None]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("heuristic:longest=0", "longest must be a whole number of at least 1, not 0"),
        ("confidence:threshold=2", "threshold must be a number from 0 to 1, not 2"),
        ("entropy:gamma=-1", "gamma must be a number of at least 0, not -1"),
        ("effort-entropy:low=0.9,high=0.5", r"low must be at most high \(0.5\), not 0.9"),
        ("goodput:effort=0", "effort must be a number above 0"),
        ("goodput:longest=99", "longest must be at most 32, not 99"),
        ("goodput:explore=none", "explore must be a number from 0 to 0.5, not None"),
        ("goodput:magic=1", "policy 'goodput' has no parameter 'magic': choose from effort, longest"),
        ("bandit:arms=fixed", "arms must be at least two different policies"),
        ("bandit:arms=fixed+bandit", "arms must be other policies than bandit itself"),
        ("bandit:arms=fixed+magic", "unknown policy 'magic'"),
    ],
)
def test_policies_refuse_what_makes_no_sense(spec, message):
    with pytest.raises(InvalidArgumentError, match=message):
        registry.create(spec)


def test_policy_files(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("policy: fixed\nparameters:\n  length: 3\n  effort: 0.5\n")
    assert registry.create(str(file)) == FixedPolicy(length=3, effort=0.5)
    file.write_text("policy: fixed\n")
    assert registry.create(str(file)) == FixedPolicy()
    assert isinstance(registry.create("careful.yaml"), EntropyPolicy)
    assert registry.create("one-effort.yaml") == registry.create("goodput:effort=1.0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: fixed\nparameters:\n  size: 3\n", "policy 'fixed' has no parameter 'size'"),
        ("policy: magic\n", "unknown policy 'magic'"),
        ("policy: fixed\nlength: 3\n", "must hold policy: NAME and, if any, parameters: of it"),
        ("- fixed\n", "must hold policy: NAME"),
        ("policy: [\n", "is not valid YAML"),
        ("policy: fixed\nparameters: 3\n", "must hold policy: NAME"),
    ],
)
def test_policy_files_that_are_refused(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=message):
        registry.create(str(file))


def test_a_policy_file_that_is_not_there():
    with pytest.raises(InvalidArgumentError, match=r"cannot read the policy file nowhere\.yaml: No such file"):
        registry.create("nowhere.yaml")
