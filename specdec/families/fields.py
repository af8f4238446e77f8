"""Typed look-ups in what a file says about itself, with errors that name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from specdec.errors import ModelFormatError

_OF_WHOLE = ("architectures", "model_type", "quantization", "quantization_config")


class Fields:
    """A mapping of names to values from a file. A value of None counts as absent.

    Args:
        values: the mapping.
        where: name of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; `default` when absent, an error when there is none."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number; `default` when absent, an error when there is none."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, "a positive number")
        return float(value)

    def at_least_zero(self, key: str, default: float) -> float:
        """A finite number of at least 0; `default` when absent."""
        value = self._get(key, default)
        return 0.0 if value == 0 and not isinstance(value, bool) else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; `default` when absent, an error when there is none."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def array(self, key: str) -> list[Any]:
        """A list; empty when absent."""
        value = self._get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value

    def mapping(self, key: str) -> Fields:
        """A nested mapping; empty when absent."""
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "a mapping")
        return Fields(value, f"{self.where}: {key}")

    def with_defaults(self, values: Mapping[str, Any]) -> Fields:
        """The same, where keys that are absent have these values; a null counts as a value."""
        return Fields({**values, **self.values}, self.where)

    def part(self, key: str, **defaults: Any) -> Fields:
        """A nested mapping that describes the model of text in a larger one. Where it says nothing, the larger one's
        kind, classes, quantisation and values of `defaults` hold."""
        inner = self.mapping(key)
        outer = {name: self.values.get(name, value) for name, value in defaults.items()}
        outer |= {name: self.values[name] for name in _OF_WHOLE if name in self.values}
        return Fields(
            {**outer, **{name: value for name, value in inner.values.items() if value is not None}}, inner.where
        )

    def wrong(self, key: str, expected: str) -> ModelFormatError:
        """The error for a value of another kind than `expected`."""
        shown = repr(self.values.get(key))
        return ModelFormatError(f"{self.where}: {key} must be {expected}, not {shown[:80]}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelFormatError(f"{self.where}: {key} is missing")
        return value
