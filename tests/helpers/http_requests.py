"""Chats of every kind for servers, and what comes back of them: whole, as a stream, or of one that is left."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from command_line import start

WORDS = [
    "the", "river", "runs", "past", "a", "mill", "and", "a", "bridge;", "who", "built", "them,", "and", "when?",
    "Ünïcödé", "東京", "🦀",
]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": [1, 22, 333]},
        "wet": {"type": "boolean"},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Looks things up.", "parameters": SCHEMA}}
    for name in ("find_river", "find_mill")
]
SHAPES: list[dict[str, Any]] = [
    {},
    {},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA}}},
    {"response_format": {"type": "json_object"}},
    {"regex": "[a-z]{3,9}( [a-z]{1,9}){0,4}"},
    {"tools": TOOLS, "tool_choice": "required"},
    {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "find_mill"}}},
    {"tools": TOOLS},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"65": 5, "66": -100}},
    {"stop": ["e", "zz"]},
]


def requests(seed: int, count: int) -> list[dict[str, Any]]:
    """Chats of every kind, each with a seed."""
    rng, made = random.Random(seed), []
    prefixes = [" ".join(rng.choices(WORDS, k=12)) for _ in range(4)]
    for number in range(count):
        messages = [{"role": "user", "content": f"{rng.choice(prefixes)} {' '.join(rng.choices(WORDS, k=5))}"}]
        if rng.random() < 0.3:
            messages.insert(0, {"role": "system", "content": "Answer."})
        sampling = rng.choice(
            ({"temperature": 0}, {"temperature": 0.8}, {"temperature": 1, "top_p": 0.9}, {"top_k": 7})
        )
        shape = rng.choice(SHAPES)
        most = 120 if "tool_choice" in shape else rng.randint(1, 30)
        made.append({"messages": messages, "seed": number, "max_tokens": most, **sampling, **shape})
    return made


def outcome(answer: dict[str, Any]) -> dict[str, Any]:
    """What of an answer has to be equal; ids of calls are random."""
    choice = answer["choices"][0]
    calls = [call["function"] for call in choice["message"].get("tool_calls", ())]
    return {
        "content": choice["message"]["content"],
        "calls": calls,
        "reason": choice["finish_reason"],
        "tokens": answer["usage"]["completion_tokens"],
        "prompt": answer["usage"]["prompt_tokens"],
    }


def streamed(response: Any, *, leave_after: int | None = None) -> dict[str, Any] | str:
    """The same from a stream; the text so far of one that is left after some chunks."""
    content, calls, reason, usage = "", dict[int, dict[str, str]](), None, {}
    for number, line in enumerate(line for line in response.iter_lines() if line and line != "data: [DONE]"):
        if number == leave_after:
            return content
        chunk = json.loads(line.removeprefix("data: "))
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
            for call in choice["delta"].get("tool_calls", ()):
                kept = calls.setdefault(call["index"], {"name": "", "arguments": ""})
                kept["name"] += call["function"].get("name", "")
                kept["arguments"] += call["function"]["arguments"]
    return {
        "content": content,
        "calls": list(calls.values()),
        "reason": reason,
        "tokens": usage["completion_tokens"],
        "prompt": usage["prompt_tokens"],
    }


def asked(url: str, request: dict[str, Any], how: str) -> dict[str, Any] | str:
    """A request's outcome: of a "whole" answer, of a "stream", or of one that is "left"."""
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        if how == "whole":
            response = client.post("/v1/chat/completions", json=request)
            assert response.status_code == 200, response.text
            return outcome(response.json())
        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            return streamed(response, leave_after=4 if how == "left" else None)


@dataclass(frozen=True)
class Process:
    """`specdec serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    client: httpx.Client


@contextmanager
def other_process(store: Path, *arguments: object) -> Iterator[Process]:
    """A server in another process, and a client of it."""
    process = start("serve", store, "--port", 0, "--log-level", "warning", *arguments)
    try:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert "serving" in said, said
        with httpx.Client(base_url=said.split()[-1], timeout=600, trust_env=False) as client:
            yield Process(process, client)
    finally:
        process.terminate()
        process.communicate(timeout=60)
