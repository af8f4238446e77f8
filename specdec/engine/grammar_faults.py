"""Which keywords of a JSON schema are to blame where it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_MOST_TRIALS, _MOST_BYTES = 200, 500_000  # schemas that are tried, and their sizes together
_UNKNOWN_KEYS = "Unimplemented keys: "  # how llguidance names keywords
_COMBINING, _MAPS = ("allOf", "anyOf", "oneOf"), ("properties", "patternProperties", "$defs", "definitions")
_SCHEMAS = ("items", "additionalProperties", "not", "contains", "propertyNames")


def at_fault(text: str, reason: str, is_usable: Callable[[str], bool]) -> tuple[str, ...]:
    """The keywords to blame: those that the reason names, else those without any one of which the schema could be used;
    none where a single one does not do it.

    Args:
        text: the schema as JSON.
        reason: what llguidance says of it.
        is_usable: whether another schema could be used.
    """
    if reason.startswith(_UNKNOWN_KEYS):
        return tuple(json.loads(reason.removeprefix(_UNKNOWN_KEYS)))
    found: list[tuple[str, ...]] = []
    schema = json.loads(text)
    trials = range(min(_MOST_TRIALS, _MOST_BYTES // len(text)))
    for _, (place, path) in zip(trials, _keywords(schema, ()), strict=False):
        value = place.pop(path[-1])
        if is_usable(json.dumps(schema)):
            found.append(path)
        place[path[-1]] = value
    # A keyword that only holds another one, and a type without which anything would do, are not to blame.
    deepest = [one for one in found if not any(one == other[: len(one)] != other for other in found)]
    found = [one for one in found if one in deepest or one[-1] in _COMBINING]
    names = dict.fromkeys(path[-1] for path in found)
    if "type" not in reason and len(names) > 1:
        names.pop("type", None)
    return tuple(names)


def _keywords(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Every keyword of a schema and of those in it: the mapping that it is in, and the way to it."""
    if not isinstance(schema, dict):
        return
    for keyword, value in list(schema.items()):
        yield schema, (*path, keyword)
        inner: Mapping[str, Any] = {"": value} if keyword in _SCHEMAS else {}
        if keyword in (*_COMBINING, "prefixItems") and isinstance(value, list):
            inner = {str(index): one for index, one in enumerate(value)}
        if keyword in _MAPS and isinstance(value, dict):
            inner = value
        for name, one in inner.items():
            yield from _keywords(one, (*path, keyword, name))
