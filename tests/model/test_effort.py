"""Effort schedules: rules, means, YAML files, and the examples in `configs/efforts`."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import tiny_config

from specdec.checks import check_effort
from specdec.errors import InvalidArgumentError
from specdec.model.effort import EffortSchedule

EXAMPLES = sorted(Path(str(files("specdec.configs"))).glob("efforts/*.yaml"))


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, math.nan, math.inf, True, "0.5", None])
def test_effort_outside_its_range_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="above 0 and at most 1"):
        check_effort(value)
    with pytest.raises(InvalidArgumentError, match=r"effort of 'head' must be a number"):
        EffortSchedule(0.5, {"head": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("rules", [None, [("head", 1.0)]])
def test_rules_that_are_no_mapping_are_refused(rules: object) -> None:
    with pytest.raises(InvalidArgumentError, match="rules must be a mapping of patterns to efforts, not "):
        EffortSchedule(0.5, rules)  # type: ignore[arg-type]


def test_last_matching_rule_wins() -> None:
    schedule = EffortSchedule(0.2, {"layers.*": 0.3, "layers.1.*": 0.4, "layers.*.mlp.down": 0.5, "head": 1})
    efforts = schedule.resolve(tiny_config())
    assert efforts["layers.0.attn.q"] == 0.3
    assert efforts["layers.1.attn.q"] == 0.4
    assert efforts["layers.1.mlp.down"] == 0.5
    assert efforts["head"] == 1.0
    assert set(efforts) == set(tiny_config().matrices())


def test_rules_reach_every_expert() -> None:
    config = tiny_config(architecture="mixtral", num_experts=4, experts_per_token=2)
    efforts = EffortSchedule(0.2, {"layers.*.mlp*.down": 0.1, "layers.*.mlp.experts.3.*": 0.9}).resolve(config)
    assert efforts["layers.1.mlp.experts.0.down"] == 0.1
    assert efforts["layers.1.mlp.experts.0.up"] == 0.2
    assert efforts["layers.1.mlp.experts.3.down"] == 0.9


def test_a_rule_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'layers\.9\.\*' matches no matrix"):
        EffortSchedule(0.2, {"layers.9.*": 0.3}).resolve(tiny_config())


@given(default=st.floats(0.01, 1), down=st.floats(0.01, 1), head=st.floats(0.01, 1), target=st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_scaling_reaches_the_mean_and_keeps_proportions(
    default: float, down: float, head: float, target: float
) -> None:
    config = tiny_config()
    schedule = EffortSchedule(default, {"*.down": down, "head": head})
    scaled = schedule.scaled_to(target, config)
    assert scaled.mean(config) == pytest.approx(target, abs=1e-6)
    before, after = schedule.resolve(config), scaled.resolve(config)
    factor = max(after[name] / before[name] for name in before)
    for name, effort in before.items():
        # One factor for all, except where the cap of 1 cuts it; the rest is float64 rounding.
        assert after[name] == pytest.approx(min(1.0, effort * factor), rel=1e-12)


def test_a_number_is_a_schedule_and_equal_schedules_hash_alike() -> None:
    assert EffortSchedule.of_value(0.5) == EffortSchedule(0.5)
    schedule = EffortSchedule(0.5, {"head": 1})
    assert EffortSchedule.of_value(schedule) is schedule
    assert hash(schedule) == hash(EffortSchedule(0.5, {"head": 1.0}))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_schedules_fit_plain_and_mixture_models(path: Path) -> None:
    schedule = EffortSchedule.from_yaml(path)
    for config in (tiny_config(), tiny_config(architecture="mixtral", num_experts=2, experts_per_token=1)):
        assert schedule.scaled_to(0.15, config).mean(config) == pytest.approx(0.15, abs=1e-6)


def test_there_are_example_schedules() -> None:
    assert {path.stem for path in EXAMPLES} >= {"uniform", "head-full", "lean-down"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must be a mapping"),
        ("efort: 0.5", "must be a mapping"),
        ("rules: [1]", "must be a mapping"),
        ("effort: [", "not valid YAML"),
        ("effort: 2", "above 0 and at most 1"),
        ("rules: {head: low}", "effort of 'head'"),
    ],
)
def test_bad_yaml_gets_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "effort.yaml"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=message):
        EffortSchedule.from_yaml(path)


def test_missing_yaml_gets_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot read effort schedule"):
        EffortSchedule.from_yaml(tmp_path / "none.yaml")
