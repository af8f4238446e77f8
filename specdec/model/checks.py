"""Checks of the values in a model's description: whole numbers, numbers, flags, choices."""

from __future__ import annotations

import math
from typing import Any, get_args

from specdec.errors import ModelFormatError


def is_whole(value: object) -> bool:
    """Whether it is a whole number, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_sizes(owner: object, **names: str) -> None:
    """Refuse attributes that are not positive whole numbers; each attribute's name in messages follows it."""
    for name, shown in names.items():
        if not is_whole(value := getattr(owner, name)) or value <= 0:
            raise ModelFormatError(f"{shown} must be a positive whole number, not {value!r}")


def check_numbers(owner: object, *names: str) -> None:
    """Refuse attributes that are not positive numbers."""
    for name in names:
        if not is_number(value := getattr(owner, name)) or value <= 0:
            raise ModelFormatError(f"{name} must be a positive number, not {value!r}")


def check_flags(owner: object, *names: str) -> None:
    """Refuse attributes that are not true or false."""
    for name in names:
        if not isinstance(value := getattr(owner, name), bool):
            raise ModelFormatError(f"{name} must be true or false, not {value!r}")


def check_choice(owner: object, name: str, choices: Any) -> None:
    """Refuse an attribute outside the values of a `Literal`."""
    if (value := getattr(owner, name)) not in get_args(choices):
        raise ModelFormatError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")
