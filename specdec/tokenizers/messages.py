"""Chat messages in the forms that chat interfaces send them, brought into the one that a chat template reads."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
# What an assistant's message may have in place of content.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


NULLS = ("left out", "empty", "none")
ARGUMENTS = ("as sent", "mapping", "text")


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How a template wants its messages.

    Attributes:
        parts: content that is a list of parts can be given; otherwise their texts are joined.
        text: content that is a text can be given; otherwise it becomes a list of one part.
        null: how content that is missing is given, one of `NULLS`.
        arguments: how arguments of tool calls are given, one of `ARGUMENTS`.
    """

    parts: bool = False
    text: bool = True
    null: str = "left out"
    arguments: str = "as sent"


def form_of_source(source: str) -> Form:
    """What a template's source tells of its form: whether it asks for None, and for the kind of arguments."""
    null = re.search(r"content['\"]?\]?\s+is\s+(not\s+)?none", source) is not None
    # Templates are written for mappings, which Hugging Face's libraries give them, and clients send text.
    has_branch = re.search(r"arguments['\"]?\]?\s+is\s+(not\s+)?(string|mapping)", source) is not None
    return Form(null="none" if null else "left out", arguments="as sent" if has_branch else "mapping")


def forms_like(form: Form) -> list[Form]:
    """`form`, then the others that differ from it in what only trying shows: content that is missing, arguments."""
    nulls, arguments = (sorted(all_, key=own.__ne__) for own, all_ in ((form.null, NULLS), (form.arguments, ARGUMENTS)))
    return [dataclasses.replace(form, null=null, arguments=kind) for null in nulls for kind in arguments]


def plain(value: Any) -> Any:
    """A value made of mappings, lists and scalars only: objects with fields (dataclasses, pydantic, or any other with a
    `role`) become mappings."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    if isinstance(getattr(value, "role", None), str):
        return plain(vars(value)) if hasattr(value, "__dict__") else value
    return value


def checked_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages as plain mappings, without fields that are None.

    Args:
        messages: mappings or objects with `role` and `content`, oldest first. Content is text or a list of parts with
            text; an assistant's message with tool calls may have none.

    Raises:
        InvalidArgumentError: there are none, or one is malformed or holds something else than text.
    """
    checked = [_checked(message, position) for position, message in enumerate(messages)]
    if not checked:
        raise InvalidArgumentError("chat messages must hold at least one message")
    return checked


def shaped(messages: Sequence[Mapping[str, Any]], form: Form) -> list[dict[str, Any]]:
    """Messages from `checked_messages` in the form that a template wants."""
    return [_shaped(message, form) for message in messages]


def joined_text(content: Any) -> str:
    """The text of a message's content, parts on lines of their own."""
    if isinstance(content, str):
        return content
    return "\n".join(part if isinstance(part, str) else part["text"] for part in content or ())


def last_text(messages: Sequence[Any]) -> str:
    """The text of the last message, if it is the assistant's and nothing but text; else an empty one."""
    last = plain(messages[-1])
    if not isinstance(last, dict) or last.get("role") != "assistant" or last.get("tool_calls"):
        return ""
    content = last.get("content")
    return joined_text(content) if isinstance(content, (str, list)) else ""


def _checked(message: Any, position: int) -> dict[str, Any]:
    value = plain(message)
    wrong = InvalidArgumentError(
        f"chat message {position} must have a 'role' and a 'content', both text (or content in parts of text)"
    )
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise wrong
    content = value.get("content")
    if content is None and isinstance(value.get("refusal"), str):
        value["content"] = content = value["refusal"]
    has_more = value["role"] == "assistant" and any(value.get(name) for name in _INSTEAD_OF_CONTENT)
    if isinstance(content, list):
        for part in content:
            _check_part(part, position)
        value["content"] = [_refusal_as_text(part) for part in content]
    elif not isinstance(content, str) and not (content is None and has_more):
        raise wrong
    return {name: item for name, item in value.items() if item is not None}


def _check_part(part: Any, position: int) -> None:
    if isinstance(part, str):
        return
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind not in _TEXT_PARTS:
        raise InvalidArgumentError(
            f"chat message {position} has a part of type {kind!r}: this model reads parts of type 'text' only"
        )
    name = "refusal" if kind == "refusal" else "text"
    if not isinstance(part.get(name), str):
        raise InvalidArgumentError(f"chat message {position} has a part of type {kind!r} without a {name!r}")


def _refusal_as_text(part: Any) -> Any:
    """A part of text, where the model refused to say something."""
    is_refusal = isinstance(part, dict) and part.get("type") == "refusal"
    return {"type": "text", "text": part["refusal"]} if is_refusal else part


def _shaped(message: Mapping[str, Any], form: Form) -> dict[str, Any]:
    out = dict(message)
    content = out.get("content")
    if content is None:
        if form.null != "left out":
            out["content"] = None if form.null == "none" else ""
    elif isinstance(content, str):
        if not form.text:
            out["content"] = [{"type": "text", "text": content}]
    elif not form.parts:
        out["content"] = joined_text(content)
    if form.arguments != "as sent" and isinstance(out.get("tool_calls"), list):
        out["tool_calls"] = [_with_arguments(call, form.arguments) for call in out["tool_calls"]]
    return out


def _with_arguments(call: Any, kind: str) -> Any:
    """A tool call whose arguments are a mapping or, by `kind`, JSON text; as it is where they cannot be that."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    try:
        if kind == "mapping" and isinstance(arguments, str):
            arguments = json.loads(arguments)
        elif kind == "text" and isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        else:
            return call
    except unless_signalled(ValueError, TypeError, RecursionError):
        return call
    is_right = isinstance(arguments, dict if kind == "mapping" else str)
    return {**call, "function": {**call["function"], "arguments": arguments}} if is_right else call
