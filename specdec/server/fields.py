"""The fields of a request's body, checked as they are taken: `Fields`. A field that was not taken is unknown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from specdec.server.errors import ApiError, bad_request, missing

T = TypeVar("T")
_HUGE = 2**40  # an upper bound above this says nothing to a reader, unless a value is above it
_MOST_SHOWN, _MOST_ITEMS = 60, 8  # characters, and items or fields, of a wrong value in an error


class Fields:
    """A JSON object of a request. Each field is taken once; null counts as absent.

    Args:
        values: of the object.
        path: path of the object in the request, "" for the body itself.

    All methods that take a field raise `ApiError` with status 400 when its value is of another kind or out of range.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self._path = dict(values), path

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def is_text(self, name: str) -> bool:
        """Whether the value is a string."""
        return isinstance(self._values.get(name), str)

    def is_flag(self, name: str) -> bool:
        """Whether the value is true or false."""
        return isinstance(self._values.get(name), bool)

    def name(self, field: str) -> str:
        """The field's whole name, as errors have it."""
        return f"{self._path}.{field}" if self._path else field

    def any(self, name: str) -> Any:
        """The value, whatever it is."""
        return self._values.pop(name, None)

    def required(self, name: str) -> Any:
        """The value, which must be there."""
        value = self.any(name)
        if value is None:
            field = self.name(name)
            raise missing(field)
        return value

    def required_text(self, name: str) -> str:
        """A string, which must be there."""
        value = self.required(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value

    def flag(self, name: str) -> bool | None:
        """True or false."""
        return self._of_kind(name, bool, "true or false")

    def text(self, name: str) -> str | None:
        """A string."""
        return self._of_kind(name, str, "a string")

    def object(self, name: str) -> dict[str, Any] | None:
        """An object's values."""
        return self._of_kind(name, dict, "an object")

    def array(self, name: str) -> list[Any] | None:
        """An array's values."""
        return self._of_kind(name, list, "an array")

    def inner(self, name: str) -> Fields | None:
        """The fields of an object."""
        found = self.object(name)
        return None if found is None else Fields(found, self.name(name))

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`."""
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number", value)
        if not low <= value <= high:
            raise self._out_of_range(name, value, low, high)
        return value

    def number(self, name: str, low: float, high: float = math.inf) -> float | None:
        """A number from `low` to `high`."""
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number", value)
        if not low <= value <= high:
            raise self._out_of_range(name, value, low, high)
        return float(value)

    def choice(self, name: str, among: Sequence[str]) -> str | None:
        """One of several strings."""
        value = self.text(name)
        if value is not None and value not in among:
            raise self.wrong(name, f"one of {', '.join(repr(one) for one in among)}", value)
        return value

    def ignore(self, *names: str) -> None:
        """Accept fields that change nothing here."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        """Refuse the fields that were not taken, as OpenAI does.

        Raises:
            ApiError: there are some.
        """
        if self._values:
            names = ", ".join(self.name(name[:60]) for name in self._values)
            many = "s" * (len(self._values) > 1)
            raise bad_request(f"Unrecognized request argument{many} supplied: {names}", code="unknown_parameter")

    def wrong(self, name: str, expected: str, value: Any) -> ApiError:
        """The error of a value of another kind."""
        field = self.name(name)
        return bad_request(f"'{field}' must be {expected}, not {shown(value)}", field, code="invalid_value")

    def _of_kind(self, name: str, kind: type[T], expected: str) -> T | None:
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, kind):
            raise self.wrong(name, expected, value)
        return value

    def _out_of_range(self, name: str, value: float, low: float, high: float) -> ApiError:
        if high == math.inf or (high > _HUGE and value < low):
            wanted = f"at least {_written(low)}"
        else:
            wanted = f"from {_written(low)} to {_written(high)}"
        return self.wrong(name, wanted, value)


def _written(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def shown(value: Any) -> str:
    """A value of a request in a few characters."""
    if isinstance(value, (list, dict)) and len(value) > _MOST_ITEMS:
        return f"an array of {len(value)} items" if isinstance(value, list) else f"an object of {len(value)} fields"
    text = (
        json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, (bool, list, dict)) else repr(value)
    )
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
