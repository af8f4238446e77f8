"""Checks of policy parameters that several policies share."""

from __future__ import annotations

import math

from specdec.errors import InvalidArgumentError


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """`value` as a whole number of at least `least`.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if type(value) is not int or value < least:
        raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """`value` as a number from `low` to `high`.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        wanted = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise InvalidArgumentError(f"{name} must be {wanted}, not {value!r}")
    return float(value)
