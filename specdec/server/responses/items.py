"""Items of OpenAI's responses API: read from a request, and as messages of the chat API."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from specdec.server.errors import ApiError, bad_request, missing
from specdec.server.fields import Fields

Item = dict[str, Any]
Message = dict[str, Any]

MOST_ITEMS = 1 << 16
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")


def new_id(kind: str) -> str:
    """An id such as "msg_0123...", of an item or a response."""
    return f"{kind}_{secrets.token_hex(16)}"


def read_items(value: Any) -> list[Item]:
    """The items of a request's `input`, checked, each with an id.

    Raises:
        ApiError: one is malformed, or of a kind that this server does not know.
    """
    if isinstance(value, str):
        return [_message_item("user", [{"type": "input_text", "text": value}])]
    if not isinstance(value, list) or len(value) > MOST_ITEMS:
        raise bad_request("'input' must be a string or an array of items", "input", code="invalid_type")
    return [_read_item(item, f"input[{number}]") for number, item in enumerate(value)]


def messages_of(items: Sequence[Item]) -> list[Message]:
    """The chat messages that items stand for; reasoning, text and calls of one turn become one message."""
    messages: list[Message] = []
    for item in items:
        if item["type"] == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": _output(item["output"])})
        elif item["type"] == "message" and item["role"] != "assistant":
            messages.append({"role": item["role"], "content": _text(item["content"])})
        else:
            _add_to_turn(messages, item)
    return [message for message in messages if not _is_empty(message)]


def _add_to_turn(messages: list[Message], item: Item) -> None:
    """Put what the assistant did into its message; reasoning begins one, unless it has just begun."""
    last = messages[-1] if messages else None
    begins = item["type"] == "reasoning" and last is not None and bool(last.get("content") or last.get("tool_calls"))
    if last is None or last["role"] != "assistant" or begins:
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    if item["type"] == "reasoning":
        last["reasoning_content"] = last.get("reasoning_content", "") + _thought(item)
    elif item["type"] == "message":
        last["content"] = "\n".join(filter(None, (last["content"], _text(item["content"]))))
    else:
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        last["tool_calls"] = [*last.get("tool_calls", ()), call]


def _is_empty(message: Message) -> bool:
    """A turn of the assistant in which it said and did nothing."""
    return message["role"] == "assistant" and not (message["content"] or message.get("tool_calls"))


def _read_item(item: Any, path: str) -> Item:
    if not isinstance(item, dict):
        raise bad_request(f"'{path}' must be an object", path, code="invalid_type")
    fields = Fields(item, path)
    kind = fields.text("type")
    if kind is None and "role" in item:
        kind = "message"
    if kind == "message":
        return _read_message(fields)
    given = fields.text("id")
    if kind == "function_call":
        names = {name: fields.required_text(name) for name in ("call_id", "name", "arguments")}
        return {"id": given or new_id("fc"), "type": kind, **names, "status": "completed"}
    if kind == "function_call_output":
        output = fields.required("output")
        if not isinstance(output, (str, list)):
            raise fields.wrong("output", "a string or an array of texts", output)
        call_id = fields.required_text("call_id")
        output = output if isinstance(output, str) else _read_parts(output, fields.name("output"))
        return {"id": given or new_id("fco"), "type": kind, "call_id": call_id, "output": output, "status": "completed"}
    if kind == "reasoning":
        parts = {name: _read_thoughts(fields, name) for name in ("summary", "content")}
        return {"id": given or new_id("rs"), "type": kind, **parts}
    raise _unsupported(fields, kind)


def _read_message(fields: Fields) -> Item:
    role = fields.choice("role", _ROLES)
    if role is None:
        name = fields.name("role")
        raise missing(name)
    given, content = fields.text("id"), fields.required("content")
    if isinstance(content, str):
        parts = [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    elif isinstance(content, list):
        parts = _read_parts(content, fields.name("content"))
    else:
        raise fields.wrong("content", "a string or an array of parts", content)
    return _message_item(role, parts, given)


def _message_item(role: str, parts: list[Item], name: str | None = None) -> Item:
    return {"id": name or new_id("msg"), "type": "message", "role": role, "content": parts, "status": "completed"}


def _read_parts(parts: Sequence[Any], path: str) -> list[Item]:
    """Parts of a content, all of which must be text."""
    found = []
    for number, part in enumerate(parts):
        where = f"{path}[{number}]"
        if not isinstance(part, dict):
            raise bad_request(f"'{where}' must be an object with a 'type'", where, code="invalid_type")
        fields = Fields(part, where)
        kind = fields.text("type")
        if kind in _TEXTS:
            found.append({"type": kind, "text": fields.required_text("text")})
        elif kind == "refusal":
            found.append({"type": kind, "refusal": fields.required_text("refusal")})
        else:
            raise _unsupported(fields, kind)
    return found


def _read_thoughts(fields: Fields, name: str) -> list[Item]:
    kind = {"summary": "summary_text", "content": "reasoning_text"}[name]
    found = []
    for number, part in enumerate(fields.array(name) or []):
        where = f"{fields.name(name)}[{number}]"
        if not isinstance(part, dict):
            raise bad_request(f"'{where}' must be an object with a 'text'", where, code="invalid_type")
        found.append({"type": kind, "text": Fields(part, where).required_text("text")})
    return found


def _thought(item: Item) -> str:
    """The text of reasoning: itself where it is there, else its summary."""
    return "".join(part["text"] for part in item["content"] or item["summary"])


def _output(output: str | Sequence[Mapping[str, Any]]) -> str:
    return output if isinstance(output, str) else _text(output)


def _text(parts: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(part["text"] if "text" in part else part["refusal"] for part in parts)


def _unsupported(fields: Fields, kind: str | None) -> ApiError:
    name = fields.name("type")
    if kind is None:
        return missing(name)
    what = "this model reads text only" if kind.startswith(("input_image", "input_file", "input_audio")) else ""
    more = f": {what}" if what else ""
    return bad_request(f"'{name}' {kind[:60]!r} is not supported{more}", name, code="unsupported_value")
