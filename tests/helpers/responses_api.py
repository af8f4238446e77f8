"""What tests of the streaming interfaces share: a tool, an answer that calls it, and the events of a stream."""

from __future__ import annotations

import json
from typing import Any

from scripted_chat import finished

from specdec.server.events import ReasoningDelta, TextDelta, ToolArgumentsDelta, ToolCallStart

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALLING = (
    ReasoningDelta("I have "),
    ReasoningDelta("to look."),
    TextDelta("I "),
    TextDelta("look."),
    ToolCallStart(0, "call_abc", "weather"),
    ToolArgumentsDelta(0, '{"city": "K'),
    ToolArgumentsDelta(0, 'öln"}'),
    ToolCallStart(1, "call_def", "weather"),
    ToolArgumentsDelta(1, "{}"),
)
SPECULATION = {
    "mean_acceptance_length": 0.0,
    "draft_acceptance_rate": 0.0,
    "acceptance_histogram": [],
    "num_spec_steps": 0,
    "num_accepted_draft_tokens": 0,
    "num_draft_tokens": 0,
    "num_spec_tokens": 0,
}


def end(reason: str = "stop", **more: Any) -> Any:
    """The end of an answer."""
    return finished(reason, metrics={"speculative_decoding": SPECULATION}, timings={"predicted_n": 7}, **more)


def sse(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names must be their types."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        assert data.startswith("data: ")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found
