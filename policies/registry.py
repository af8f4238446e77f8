"""Policies by name, and the reading of `name:key=value` and of policy files. What a policy does is in its own file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from specdec.policies.bandit import BanditPolicy
from specdec.policies.confidence import ConfidencePolicy
from specdec.policies.effort_entropy import EffortEntropyPolicy
from specdec.policies.entropy import EntropyPolicy
from specdec.policies.fixed import FixedPolicy
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.heuristic import HeuristicPolicy

from specdec.engine.policy import Policy
from specdec.errors import InvalidArgumentError
from specdec.registry import Registry

_registry: Registry[Callable[..., Policy]] = Registry("policy", "specdec.policies")

register = _registry.register
names = _registry.names


def create(spec: str) -> Policy:
    """A new policy from `name`, `name:key=value,key=value`, or a policy file, `FILE.yaml`.

    A policy file names the `policy` and its `parameters`; one that is not there is looked for among those of
    `configs/policies`. Keys are the constructor's arguments; on the command line, values are read as whole numbers,
    numbers, `true`, `false`, `none`, or text.

    Raises:
        UnknownNameError: no policy of that name.
        InvalidArgumentError: an unknown key, a key given twice, a missing value, a value that the policy refuses, or a
            file that is no policy file.
    """
    if spec.endswith((".yaml", ".yml")):
        name, arguments = _read(spec)
        constructor = _registry.get(name)
        _check_keys(name, list(arguments), constructor)
    else:
        name, _, parameters = spec.partition(":")
        constructor = _registry.get(name)
        arguments = _arguments(name, parameters, constructor)
    try:
        policy = constructor(**arguments)
    except Exception as error:
        raise InvalidArgumentError(f"policy {name!r} refuses its parameters: {error}") from error
    if not isinstance(policy, Policy):
        raise InvalidArgumentError(f"policy {name!r} must have the methods plan, next_step and observe")
    return policy


def _arguments(name: str, parameters: str, constructor: Callable[..., Policy]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for item in (part.strip() for part in parameters.split(",") if part.strip()):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise InvalidArgumentError(f"policy parameter {item!r} must be written key=value")
        _check_keys(name, [key], constructor)
        if key in arguments:
            raise InvalidArgumentError(f"policy parameter {key!r} is given twice")
        arguments[key] = _value(value)
    return arguments


def _check_keys(name: str, keys: list[str], constructor: Callable[..., Policy]) -> None:
    allowed = list(inspect.signature(constructor).parameters) if keys else []
    for key in keys:
        if key not in allowed:
            raise InvalidArgumentError(
                f"policy {name!r} has no parameter {key!r}: choose from {', '.join(allowed) or '(none)'}"
            )


def _read(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters from a policy file, or from the one of that name in `configs/policies`."""
    own = resources.files("specdec.configs").joinpath("policies", spec)
    try:
        text = own.read_text(encoding="utf-8") if _is_preset(spec) else Path(spec).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the policy file {spec}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InvalidArgumentError(f"the policy file {spec} is no YAML: write policy: NAME and parameters:") from None
    parameters = content.get("parameters") or {} if isinstance(content, Mapping) else None
    if (
        not isinstance(content, Mapping)
        or not isinstance(content.get("policy"), str)
        or set(content) - {"policy", "parameters"}
        or not isinstance(parameters, Mapping)
    ):
        raise InvalidArgumentError(f"the policy file {spec} must hold policy: NAME and, if any, parameters: of it")
    return content["policy"], {str(key): value for key, value in parameters.items()}


def _is_preset(spec: str) -> bool:
    """Whether `spec` is no file, but the name of one in `configs/policies`."""
    if Path(spec).exists() or Path(spec).name != spec:
        return False
    return resources.files("specdec.configs").joinpath("policies", spec).is_file()


def _value(text: str) -> Any:
    """`text` as a whole number, a number, a truth value, None, or itself."""
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


register("auto", GoodputPolicy)
register("bandit", BanditPolicy)
register("confidence", ConfidencePolicy)
register("effort-entropy", EffortEntropyPolicy)
register("entropy", EntropyPolicy)
register("fixed", FixedPolicy)
register("goodput", GoodputPolicy)
register("heuristic", HeuristicPolicy)
