"""Grammars that make an answer a tool call: `call_grammar`. They are in Lark as llguidance reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from specdec.server.parsing.reasoning import Reasoning, ReasoningFormat
from specdec.server.tools.layout import VALUE_END, Layout, parameter

MOST_CALLS = 16
"""Calls that one answer can be made to hold; a model that does not stop by itself is stopped here."""

_ANY_TEXT = "/(?s:.*)/"
_MARKER = re.compile(r"<\|[^|<>]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|\[/?[A-Z_]+\]|</?[a-z_:]+>")
# As Python and most chat templates write JSON; other white space costs tokens.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Keywords that llguidance does not know hold only where a function asks for its schema to the letter.
_LENIENT = {**_SPACING, "lenient": True}
_DEFINITIONS = ("$defs", "definitions")
_MORE_PROPERTIES = (
    "additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref", "if",
)  # fmt: skip

ControlId = Callable[[str], int | None]
"""The id of the control token of a name, or None; see `Tokenizer.control_id`."""


def call_grammar(
    layout: Layout,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    strict: Collection[str] = (),
    most: int = MOST_CALLS,
    control_id: ControlId = lambda _name: None,
    reasoning: tuple[ReasoningFormat, Reasoning] | None = None,
) -> str:
    """A grammar of answers that are calls of one of the functions, and nothing else but reasoning before it.

    Args:
        layout: the text of calls.
        tools: JSON schemas of arguments by the names of the functions.
        strict: functions whose schemas may not hold anything that is not supported.
        most: calls in an answer.
        control_id: tells which markers are control tokens.
        reasoning: markers of reasoning and where the answer begins.
    """
    rules = _Rules(control_id)
    calls = [
        _call(rules, layout, number, name, {"x-guidance": _SPACING if name in strict else _LENIENT, **schema})
        for number, (name, schema) in enumerate(tools.items())
    ]
    several = f" ({rules.literal(layout.between)} call){{0,{most - 1}}}" if most > 1 and layout.several else ""
    before = _before(rules, reasoning)
    rules.add("call", " | ".join(calls))
    start = f"{before} {rules.literal(layout.before)} call{several} {rules.literal(layout.after)}"
    return rules.text(start)


def json_grammar(
    schema: Mapping[str, Any], *, control_id: ControlId, reasoning: tuple[ReasoningFormat, Reasoning]
) -> str:
    """A grammar of answers that are JSON by a schema, with reasoning before it.

    Args:
        schema: JSON schema.
        control_id: tells which markers are control tokens.
        reasoning: markers of reasoning and where the answer begins.
    """
    rules = _Rules(control_id)
    before = _before(rules, reasoning)
    answer = rules.add("answer", f"%json {_json({'x-guidance': _SPACING, **schema})}")
    return rules.text(f"{before} {answer}")


class _Rules:
    """Rules of a grammar in Lark."""

    def __init__(self, control_id: ControlId) -> None:
        self._control_id = control_id
        self._rules: list[str] = []

    def add(self, name: str, body: str) -> str:
        self._rules.append(f"{name}: {body}")
        return name.partition("[")[0]

    def text(self, start: str) -> str:
        return "\n".join([f"start: {start.strip()}", *self._rules]) + "\n"

    def literal(self, text: str) -> str:
        """Text in which names of control tokens are those tokens."""
        parts, place = [], 0
        for found in _MARKER.finditer(text):
            token = self._control_id(found[0])
            if token is not None:
                parts += [_quoted(text[place : found.start()]), f"<[{token}]>"]
                place = found.end()
        return " ".join(part for part in (*parts, _quoted(text[place:])) if part)

    def text_up_to(self, name: str, end: str) -> str:
        """Any text, and then `end`."""
        marker = _MARKER.match(end)
        if marker is not None and self._control_id(marker[0]) is not None:
            return self.add(name, f"{_ANY_TEXT} {self.literal(end)}")
        return self.add(f"{name}[suffix={_quoted(end)}]", _ANY_TEXT)


def _call(rules: _Rules, layout: Layout, number: int, name: str, schema: Mapping[str, Any]) -> str:
    begin = rules.literal(f"{layout.name}{name}{layout.arguments}")
    if layout.in_tags:
        arguments = _parameters(rules, number, schema)
    else:
        arguments = rules.add(f"arguments_{number}", f"%json {_json(_arguments_schema(schema))}")
    return rules.add(f"call_{number}", f"{begin} {arguments} {rules.literal(layout.end)}".rstrip())


def _parameters(rules: _Rules, number: int, schema: Mapping[str, Any]) -> str:
    """Arguments in tags, in the order of the schema."""
    properties = schema.get("properties") or {}
    shared = {name: schema[name] for name in ("x-guidance", *_DEFINITIONS) if name in schema}
    parts = []
    for place, (key, value) in enumerate(properties.items()):
        body = rules.add(
            f"parameter_{number}_{place}",
            f"{rules.literal(parameter(key))} {_value(rules, f'value_{number}_{place}', value, shared)}",
        )
        parts.append(body if key in schema.get("required", ()) else f"{body}?")
    return " ".join(parts)


def _value(rules: _Rules, name: str, schema: Any, shared: Mapping[str, Any]) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    if isinstance(choices, list) and choices and all(isinstance(one, str) for one in choices):
        return f"({' | '.join(map(_quoted, choices))}) {rules.literal(VALUE_END)}"
    if kind == "string" or not isinstance(schema, Mapping):
        return rules.text_up_to(name, VALUE_END)
    value = rules.add(name, f"%json {_json({**shared, **schema})}")
    return f"{value} {rules.literal(VALUE_END)}"


def _before(rules: _Rules, reasoning: tuple[ReasoningFormat, Reasoning] | None) -> str:
    """Reasoning that may or does come first."""
    if reasoning is None or reasoning[1] is Reasoning.OVER:
        return ""
    form, state = reasoning
    rest = f"{rules.text_up_to('reasoning', form.end)} /\\n{{0,2}}/"
    return rest if state is Reasoning.INSIDE else f"({rules.literal(form.begin)} {rest})?"


def _arguments_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A function's arguments: an object, without properties that the function does not name."""
    own = dict(schema)
    if "type" not in own and not any(name in own for name in ("$ref", "allOf", "anyOf", "oneOf")):
        own["type"] = "object"
    if "properties" in own and not any(name in own for name in _MORE_PROPERTIES):
        own["additionalProperties"] = False
    return own


def _quoted(text: str) -> str:
    return _json(text) if text else ""


def _json(value: Any) -> str:
    # A grammar with "::=" in it is taken for GBNF.
    return json.dumps(value, ensure_ascii=False).replace("::=", "\\u003a:=")
