"""Reader of arguments that are written one by one, each in a tag of its own: `<parameter=KEY>VALUE</parameter>`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from specdec.server.parsing.cursor import Cursor, Reading
from specdec.server.parsing.pieces import Piece, text_of
from specdec.server.tools.calls import Calls
from specdec.server.tools.markers import FUNCTION_END, PARAMETER, PARAMETER_END

# Models forget the end of a parameter; the next tag on a line of its own ends it as well.
_VALUE_ENDS = (f"\n{PARAMETER_END}", PARAMETER_END, f"\n{PARAMETER}", f"\n{FUNCTION_END}")
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def read_parameters(cursor: Cursor, calls: Calls, schema: Mapping[str, Any]) -> Reading[None]:
    """Arguments of an open call, written as one JSON object; a value has the type that the schema gives it.

    Args:
        cursor: before the first parameter.
        calls: gets the arguments.
        schema: JSON schema of the arguments.
    """
    properties = schema.get("properties")
    calls.arguments("{")
    separator = ""
    while True:
        if not (yield from cursor.has(PARAMETER, spaced=True)):
            break
        key, _ = yield from cursor.until([">"])
        calls.arguments(f"{separator}{_json(key)}: ")
        types = _types(properties.get(key) if isinstance(properties, Mapping) else None)
        if types == {"string"}:
            calls.arguments('"')
            yield from _read_value(cursor, lambda text: calls.arguments(_json(text)[1:-1]))
            calls.arguments('"')
        else:
            parts: list[str] = []
            yield from _read_value(cursor, parts.append)
            calls.arguments(_typed("".join(parts), types))
        separator = ", "
    calls.arguments("}")


def _read_value(cursor: Cursor, take: Any) -> Reading[None]:
    """Hand on a value's text as it comes, without the line breaks around it."""
    first = yield from cursor.next()
    if first.is_control or first.text != "\n":
        cursor.back(first)
    held: list[Piece] = []
    while True:
        piece = yield from cursor.next()
        if piece.is_control:
            continue
        held.append(piece)
        text = text_of(held)
        end = next((one for one in _VALUE_ENDS if text.endswith(one)), None)
        if end is not None:
            take(text.removesuffix(end))
            if not end.endswith(PARAMETER_END):
                cursor.back(*held[len(held) - len(end) + 1 :])
            return
        count = _begun(text)
        if count < len(held):
            take(text[: len(text) - count])
            held = held[len(held) - count :]


def _begun(text: str) -> int:
    """How many of the last characters may be the beginning of the value's end."""
    longest = min(len(text), max(map(len, _VALUE_ENDS)) - 1)
    counts = range(longest, 0, -1)
    return next((count for count in counts if any(end.startswith(text[-count:]) for end in _VALUE_ENDS)), 0)


def _types(schema: Any) -> Collection[str]:
    """JSON types that a schema allows, as far as it says so plainly; none when it does not."""
    if not isinstance(schema, Mapping):
        return frozenset()
    found = schema.get("type")
    if isinstance(found, str):
        return frozenset([found])
    if isinstance(found, Sequence):
        return frozenset(one for one in found if isinstance(one, str))
    for name in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(name), Sequence):
            return frozenset(kind for option in options for kind in _types(option))
    values = schema.get("enum")
    if isinstance(values, Sequence) and values and all(isinstance(value, str) for value in values):
        return frozenset(["string"])
    return frozenset()


def _typed(text: str, types: Collection[str]) -> str:
    """JSON of a value that was written as text."""
    word = text.strip()
    try:
        value = _WORDS[word.lower()] if word.lower() in _WORDS else json.loads(word)
        written = _json(value)
    except (ValueError, RecursionError):
        return _json(text)
    if not types or _kind(value) in types or (_kind(value) == "integer" and "number" in types):
        return written
    return _json(text)


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    return names.get(type(value), "string")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
