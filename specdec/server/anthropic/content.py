"""Messages of Anthropic's API, whose contents are blocks, as messages of OpenAI's chat API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from specdec.server.errors import ApiError, bad_request
from specdec.server.fields import Fields

Message = dict[str, Any]

_ROLES = ("user", "assistant", "system")


def read_conversation(system: Any, messages: Any) -> list[Message]:
    """The messages of a request, with its system prompt first.

    Args:
        system: the field of that name.
        messages: likewise.

    Raises:
        ApiError: one of them is malformed or holds something else than text and calls of tools.
    """
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be an array of at least one message", "messages")
    done: list[Message] = []
    if system is not None and (text := _texts(system, "system")):
        done.append({"role": "system", "content": text})
    for number, message in enumerate(messages):
        for one in _read_message(message, f"messages.{number}"):
            _append(done, one)
    if not any(message["role"] != "system" for message in done):
        raise bad_request("'messages' must hold at least one message with content", "messages")
    return done


def _read_message(message: Any, path: str) -> list[Message]:
    if not isinstance(message, dict):
        raise bad_request(f"'{path}' must be an object with 'role' and 'content'", path)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"'{path}.role' must be 'user' or 'assistant'", f"{path}.role")
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list):
        raise bad_request(f"'{path}.content' must be a string or an array of blocks", f"{path}.content")
    where = f"{path}.content"
    if role == "assistant":
        return _read_assistant(blocks, where)
    if role == "system":
        return [{"role": "system", "content": text}] if (text := _texts(blocks, where)) else []
    return _read_user(blocks, where)


def _read_user(blocks: Sequence[Any], path: str) -> list[Message]:
    done: list[Message] = []
    for number, block in enumerate(blocks):
        fields, kind = _block(block, f"{path}.{number}")
        if kind == "text":
            _append(done, {"role": "user", "content": _text(fields)})
        elif kind == "document":
            _append(done, {"role": "user", "content": _document(fields)})
        elif kind == "tool_result":
            content = fields.any("content")
            done.append(
                {
                    "role": "tool",
                    "tool_call_id": fields.required_text("tool_use_id"),
                    "content": "" if content is None else _texts(content, fields.name("content")),
                }
            )
        else:
            raise _unsupported(fields, kind)
    return done


def _read_assistant(blocks: Sequence[Any], path: str) -> list[Message]:
    message: Message = {"role": "assistant", "content": ""}
    for number, block in enumerate(blocks):
        fields, kind = _block(block, f"{path}.{number}")
        if kind == "text":
            message["content"] += _text(fields)
        elif kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + fields.required_text("thinking")
        elif kind == "tool_use":
            message.setdefault("tool_calls", []).append(_call(fields))
        elif kind != "redacted_thinking":
            raise _unsupported(fields, kind)
    return [message] if message["content"] or message.get("tool_calls") else []


def _call(fields: Fields) -> dict[str, Any]:
    arguments = fields.required("input")
    if not isinstance(arguments, dict):
        raise fields.wrong("input", "an object", arguments)
    function = {"name": fields.required_text("name"), "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": fields.required_text("id"), "type": "function", "function": function}


def _append(messages: list[Message], message: Message) -> None:
    """Add a message; two of one role that follow each other are one turn."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != message["role"] or message["role"] == "tool":
        messages.append(message)
        return
    last["content"] = "\n".join(text for text in (last["content"], message["content"]) if text)
    if calls := message.get("tool_calls"):
        last["tool_calls"] = [*last.get("tool_calls", ()), *calls]
    if thought := message.get("reasoning_content"):
        last["reasoning_content"] = "\n".join(filter(None, (last.get("reasoning_content"), thought)))


def _block(block: Any, path: str) -> tuple[Fields, str]:
    """The fields of a block, and its type."""
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise bad_request(f"'{path}' must be an object with a 'type'", path)
    return Fields(block, path), block["type"]


def _texts(content: Any, path: str) -> str:
    """The text of content that is text or blocks of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"'{path}' must be a string or an array of blocks of text", path)
    found = []
    for number, block in enumerate(content):
        fields, kind = _block(block, f"{path}.{number}")
        if kind not in ("text", "document"):
            raise _unsupported(fields, kind)
        found.append(_text(fields) if kind == "text" else _document(fields))
    return "\n".join(found)


def _text(fields: Fields) -> str:
    return fields.required_text("text")


def _document(fields: Fields) -> str:
    """The text of a document, which must be plain text."""
    source = fields.inner("source")
    if source is None or source.any("type") != "text":
        raise bad_request(f"'{fields.name('source')}' must be of type 'text': this model reads no other documents")
    title = fields.text("title")
    text = source.required_text("data")
    return f"{title}\n\n{text}" if title else text


def _unsupported(fields: Fields, kind: str) -> ApiError:
    what = {"image": "images are not supported: this model reads text only"}
    path = fields.name("type")
    return bad_request(f"'{path}': {what.get(kind, f'blocks of type {kind[:60]!r} are not supported here')}", path)
