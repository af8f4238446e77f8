"""Refusing a model that a runtime does not execute, in one sentence."""

from __future__ import annotations

from collections.abc import Collection

from specdec.errors import InvalidArgumentError


def lack(name: str, missing: Collection[str]) -> str | None:
    """Why the runtime `name` cannot run a model, from what its `missing` names; None when it can."""
    if not missing:
        return None
    return f"the {name} runtime does not execute {', '.join(sorted(missing))}, which this model needs"


def check_missing(name: str, missing: Collection[str]) -> None:
    """Refuse a model that the runtime `name` cannot run.

    Raises:
        InvalidArgumentError: something is missing.
    """
    if (reason := lack(name, missing)) is not None:
        raise InvalidArgumentError(reason)
