"""Checks of numbers that several parts of the library take as arguments or compute. No array library."""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeGuard

from specdec.errors import InvalidArgumentError, ModelOutputError


def is_integral(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, Python's or NumPy's, and not a truth value."""
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def check_effort(value: Any, name: str = "effort") -> float:
    """`value` as a float in (0, 1].

    Raises:
        InvalidArgumentError: it is not a number or outside (0, 1].
    """
    if not 0 < as_number(value) <= 1:
        raise InvalidArgumentError(f"{name} must be a number above 0 and at most 1, not {value!r}")
    return float(value)


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """`value` as a whole number of at least `least`.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if not is_integral(value) or int(value) < least:
        raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """`value` as a number from `low` to `high`.

    Raises:
        InvalidArgumentError: it is something else.
    """
    number = as_number(value)
    if not low <= number <= high:
        wanted = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise InvalidArgumentError(f"{name} must be {wanted}, not {value!r}")
    return number


def is_unicode(text: str) -> bool:
    """Whether a text can be written in UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_number(value: object) -> float:
    """`value` as a float if it is a real number, infinite beyond a float's range; else NaN, which fails comparisons."""
    if type(value) is float:  # nearly all are; an abstract class is slow to ask
        return value
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def check_finite(highest: float, position: int) -> None:
    """Refuse logits for `position` of which the largest is not finite.

    Raises:
        ModelOutputError: it is not.
    """
    if not math.isfinite(highest):
        raise ModelOutputError(
            f"the model's logits for position {position} are not finite (the largest is {highest}): the model may "
            "be damaged, or its activations overflow"
        )
