"""An answer in the form of Anthropic's messages: the events of a stream, or one message."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterator
from typing import Any

from specdec.server.events import (
    ChatEvent,
    Finished,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallStart,
    Usage,
)
from specdec.server.parsing.json_scan import begun_object

Event = dict[str, Any]

PING: Event = {"type": "ping"}
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class MessageFrame:
    """Makes the events of one message.

    Args:
        model: as the request called it.
        prompt_tokens: of the request.
        shows_thinking: with the text of the reasoning.
    """

    def __init__(self, model: str, prompt_tokens: int, *, shows_thinking: bool = True) -> None:
        self._model, self._prompt_tokens, self._shows_thinking = model, prompt_tokens, shows_thinking
        self._id = f"msg_{secrets.token_hex(12)}"
        self._kind = ""  # of the open block
        self._index = -1  # of the block that began last
        self._thought = hashlib.sha256()

    def begin(self) -> Event:
        """The first event."""
        usage = _usage(Usage(self._prompt_tokens, 0))
        return {"type": "message_start", "message": self._message([], None, None, usage)}

    def events_of(self, event: ChatEvent) -> Iterator[Event]:
        """The events that one of the answer's becomes."""
        if isinstance(event, Finished):
            yield from self._end(event)
        elif isinstance(event, ToolCallStart):
            name = event.id.removeprefix("call_")
            yield from self._open("tool_use", {"id": f"toolu_{name}", "name": event.name, "input": {}})
        elif isinstance(event, ToolArgumentsDelta):
            yield self._delta(event.text)
        elif isinstance(event, TextDelta):
            if event.text:
                if self._kind != "text":
                    yield from self._open("text", {"text": ""})
                yield self._delta(event.text)
        elif event.text:
            if self._kind != "thinking":
                yield from self._open("thinking", {"thinking": "", "signature": ""})
            self._thought.update(event.text.encode("utf-8", "surrogatepass"))
            if self._shows_thinking:
                yield self._delta(event.text)

    def whole(self, events: list[Event]) -> Event:
        """The message that the events of a stream make."""
        blocks: list[dict[str, Any]] = []
        inputs: dict[int, str] = {}
        end: Event = {}
        for event in events:
            if event["type"] == "content_block_start":
                blocks.append(dict(event["content_block"]))
            elif event["type"] == "content_block_delta":
                block, delta = blocks[event["index"]], event["delta"]
                if block["type"] == "tool_use":
                    inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
                else:
                    name = next(name for name in delta if name != "type")
                    block[name] += delta[name]
            elif event["type"] == "message_delta":
                end = event
        for index, text in inputs.items():
            blocks[index]["input"] = begun_object(text)
        return self._message(blocks, end["delta"]["stop_reason"], end["delta"]["stop_sequence"], end["usage"])

    def _open(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self._kind, self._index = kind, self._index + 1
        yield {"type": "content_block_start", "index": self._index, "content_block": {"type": kind, **fields}}

    def _close(self) -> Iterator[Event]:
        if not self._kind:
            return
        if self._kind == "thinking":
            # Opaque to clients, which send it back with the text; nothing here depends on it.
            signature = base64.b64encode(self._thought.digest()).decode()
            yield self._block_delta({"type": "signature_delta", "signature": signature})
        yield {"type": "content_block_stop", "index": self._index}
        self._kind = ""

    def _delta(self, text: str) -> Event:
        kind, name = _DELTAS[self._kind]
        return self._block_delta({"type": kind, name: text})

    def _block_delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self, finished: Finished) -> Iterator[Event]:
        yield from self._close()
        reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(finished.reason, "end_turn")
        if reason == "end_turn" and finished.stop_string is not None:
            reason = "stop_sequence"
        yield {
            "type": "message_delta",
            "delta": {
                "stop_reason": reason,
                "stop_sequence": finished.stop_string if reason == "stop_sequence" else None,
            },
            "usage": _usage(finished.usage),
        }
        yield {"type": "message_stop"}

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, stop_sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop_sequence,
            "usage": usage,
        }


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts the tokens of a prompt that were in a cache apart from the others."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
