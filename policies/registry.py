"""Policies by name, and the reading of `name:key=value,key=value`. What a policy does lives in its own file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from specdec.policies.base import Policy
from specdec.policies.fixed import FixedPolicy

from specdec.errors import InvalidArgumentError
from specdec.registry import Registry

_registry: Registry[Callable[..., Policy]] = Registry("policy", "specdec.policies")

register = _registry.register
names = _registry.names


def create(spec: str) -> Policy:
    """A new policy from `name` or `name:key=value,key=value`.

    Keys are the constructor's arguments; values are read as whole numbers, numbers, `true`, `false`, `none`, or text.

    Raises:
        UnknownNameError: no policy of that name.
        InvalidArgumentError: an unknown key, a key given twice, a missing value, or a value that the policy refuses.
    """
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
    items = [part.strip() for part in parameters.split(",") if part.strip()]
    allowed = list(inspect.signature(constructor).parameters) if items else []
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise InvalidArgumentError(f"policy parameter {item!r} must be written key=value")
        if key not in allowed:
            raise InvalidArgumentError(
                f"policy {name!r} has no parameter {key!r}: choose from {', '.join(allowed) or '(none)'}"
            )
        if key in arguments:
            raise InvalidArgumentError(f"policy parameter {key!r} is given twice")
        arguments[key] = _value(value)
    return arguments


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


register("fixed", FixedPolicy)
