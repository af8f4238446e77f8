"""Functions as tools: the JSON schema of a Python function, from its type hints and its docstring in Google's style."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from specdec.errors import InvalidArgumentError

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", list: "array",
          tuple: "array", dict: "object"}  # fmt: skip
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Return|Raises|Yields|Examples?|Notes?):\s*$", re.M)
_ENTRY = re.compile(r"^(\s*)(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def function_tool(function: Callable[..., Any]) -> dict[str, Any]:
    """A function as chat templates expect a tool.

    Raises:
        InvalidArgumentError: the function has no docstring, or a parameter without a type hint.
    """
    name, text = function.__name__, inspect.getdoc(function)
    if not text:
        raise InvalidArgumentError(f"the tool {name} needs a docstring that says what it does")
    summary, described, returned = _parts(text)
    hints = typing.get_type_hints(function)
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.name not in hints:
            raise InvalidArgumentError(f"the tool {name} needs a type hint for its parameter {parameter.name}")
        schema = _schema(hints[parameter.name])
        if parameter.name in described:
            schema["description"] = described[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    found = {"name": name, "description": summary, "parameters": parameters}
    if hints.get("return") not in (None, type(None)):
        found["return"] = _schema(hints["return"]) | ({"description": returned} if returned else {})
    return {"type": "function", "function": found}


def _parts(text: str) -> tuple[str, dict[str, str], str]:
    """What a docstring says of the function, of each parameter, and of what is returned."""
    sections = list(_SECTION.finditer(text))
    summary = text[: sections[0].start()] if sections else text
    described, returned = dict[str, str](), ""
    for number, section in enumerate(sections):
        end = sections[number + 1].start() if number + 1 < len(sections) else len(text)
        body = text[section.end() : end]
        if section[1] in ("Args", "Arguments", "Parameters"):
            described = _entries(body)
        elif section[1] in ("Returns", "Return"):
            returned = " ".join(body.split())
    return summary.strip(), described, returned


def _entries(body: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    indent, current = None, ""
    for line in body.splitlines():
        entry = _ENTRY.match(line)
        if entry and (indent is None or len(entry[1]) <= indent):
            indent, current = len(entry[1]), entry[2]
            found[current] = [entry[3]]
        elif current and line.strip():
            found[current].append(line.strip())
    return {name: " ".join(" ".join(lines).split()) for name, lines in found.items()}


def _schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type hint; any value where the hint says nothing that JSON has."""
    if hint in _NAMES:
        return {"type": _NAMES[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        kinds = {_NAMES.get(type(value)) for value in arguments}
        return ({"type": kinds.pop()} if len(kinds) == 1 else {}) | {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        kinds_of = [_schema(one) for one in arguments if one is not type(None)]
        schema = kinds_of[0] if len(kinds_of) == 1 else {"anyOf": kinds_of}
        return schema | {"nullable": True} if type(None) in arguments else schema
    if origin in (list, tuple, set):
        items = [one for one in arguments if one is not ...]
        return {"type": "array"} | ({"items": _schema(items[0])} if items else {})
    if origin is dict:
        return {"type": "object"} | ({"additionalProperties": _schema(arguments[1])} if arguments else {})
    return {}
