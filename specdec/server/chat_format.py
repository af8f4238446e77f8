"""A chat answer in the form of OpenAI's chat completions: chunks of a stream, or one object."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from specdec.server.events import (
    ChatEvent,
    Finished,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    TokenOrigin,
    ToolArgumentsDelta,
    ToolCallStart,
    Usage,
)
from specdec.server.timings import merged_speculation, merged_timings, merged_usage
from specdec.version import version

FINGERPRINT = f"specdec-{version()}"


def usage_dict(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def chunk_usage(event: ChatEvent, *, include: bool, continuous: bool) -> dict[str, Any]:
    """The usage in the chunk of an event: null before the last chunk, unless the caller wants it in every one.

    Args:
        event: with the usage so far.
        include: the caller asked for the usage.
        continuous: in every chunk, see vLLM's `continuous_usage_stats`.
    """
    if not include:
        return {}
    return {"usage": usage_dict(event.usage) if continuous and event.usage is not None else None}


def logprob_dict(entry: TokenLogprob) -> dict[str, Any]:
    """A token of OpenAI's `logprobs.content`."""
    return _one_logprob(entry) | {"top_logprobs": [_one_logprob(other) for other in entry.top]}


def origin_dict(origins: Iterable[TokenOrigin]) -> dict[str, Any]:
    """The producer of each token: an extension of this server."""
    return {"tokens": [{"text": one.text, "origin": one.origin} for one in origins]}


def outcome_dict(finished: list[Finished]) -> dict[str, Any]:
    """What answers did beyond their usage: extensions in other servers' names, and what makes them repeatable."""
    speculation = [one.metrics["speculative_decoding"] for one in finished]
    plain = [one.metrics.get("plain_decoding", {}).get("estimated_ms") for one in finished]
    return {
        "timings": merged_timings([dict(one.timings) for one in finished]),
        "metrics": {
            "speculative_decoding": merged_speculation(speculation),
            "plain_decoding": {"estimated_ms": None if None in plain else sum(plain)},
        },
    }


def repeat_dict(finished: Finished) -> dict[str, Any]:
    """With what the answer can be had again, and from whom."""
    return {"seed": finished.seed, "identical_to": finished.identical_to}


class ChatFrame:
    """What the chunks of a stream and a whole answer have in common.

    Args:
        model: as the request called it.
        logprobs: the caller wants log-probabilities.
        token_origins: the caller wants to know who produced each token.
    """

    def __init__(self, model: str, *, logprobs: bool, token_origins: bool) -> None:
        self._model, self._logprobs, self._origins = model, logprobs, token_origins
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def first_chunk(self, choice: int) -> dict[str, Any]:
        """The chunk that begins a choice."""
        return self.chunk([self._choice(choice, {"role": "assistant", "content": ""})])

    def chunk_of(self, choice: int, event: ChatEvent) -> dict[str, Any]:
        """The chunk of an event."""
        if isinstance(event, Finished):
            ended = self._choice(choice, {}, event.reason)
            ended["specdec"] = repeat_dict(event)
            return self.chunk([ended]) | outcome_dict([event])
        made = self._choice(choice, _delta(event))
        if isinstance(event, (TextDelta, ReasoningDelta)):
            if self._logprobs and event.logprobs:
                made["logprobs"] = _logprobs(event)
            if self._origins:
                made["specdec"] = origin_dict(event.origins)
        return self.chunk([made])

    def usage_chunk(self, finished: list[Finished]) -> dict[str, Any]:
        """The last chunk, for callers who asked for the usage."""
        return self.chunk([]) | {"usage": usage_dict(merged_usage(one.usage for one in finished))}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A chunk of a stream."""
        return self._frame("chat.completion.chunk") | {"choices": choices}

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The answer of a request without `stream`."""
        finished = [one.end for one in answers]
        return (
            self._frame("chat.completion")
            | {
                "choices": [self._whole_choice(number, answer) for number, answer in enumerate(answers)],
                "usage": usage_dict(merged_usage(one.usage for one in finished)),
            }
            | outcome_dict(finished)
        )

    def _whole_choice(self, number: int, answer: Collected) -> dict[str, Any]:
        logprobs = {"content": [logprob_dict(one) for one in answer.logprobs], "refusal": None}
        return {
            "index": number,
            "message": answer.message(),
            "logprobs": logprobs if self._logprobs else None,
            "finish_reason": answer.end.reason,
            "specdec": repeat_dict(answer.end) | (origin_dict(answer.origins) if self._origins else {}),
        }

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }

    @staticmethod
    def _choice(number: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}


@dataclass
class Collected:
    """The events of one answer, put together."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    origins: list[TokenOrigin] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: ChatEvent) -> None:
        """Take an event."""
        if isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, ToolCallStart):
            self.calls[event.index] = {"id": event.id, "name": event.name, "arguments": ""}
        elif isinstance(event, ToolArgumentsDelta):
            self.calls[event.index]["arguments"] += event.text
        else:
            (self.text if isinstance(event, TextDelta) else self.reasoning).append(event.text)
            self.logprobs += event.logprobs
            self.origins += event.origins

    @property
    def end(self) -> Finished:
        """The last event; to be asked for once it has come."""
        assert self.finished is not None
        return self.finished

    def message(self) -> dict[str, Any]:
        """OpenAI's message."""
        text, reasoning = "".join(self.text), "".join(self.reasoning)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not self.calls else None,
            "refusal": None,
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for _, call in sorted(self.calls.items())
            ]
        return message


def _delta(event: ChatEvent) -> dict[str, Any]:
    if isinstance(event, TextDelta):
        return {"content": event.text}
    if isinstance(event, ReasoningDelta):
        return {"reasoning_content": event.text}
    if isinstance(event, ToolCallStart):
        function = {"name": event.name, "arguments": ""}
        return {"tool_calls": [{"index": event.index, "id": event.id, "type": "function", "function": function}]}
    assert isinstance(event, ToolArgumentsDelta)
    return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}


def _logprobs(event: TextDelta | ReasoningDelta) -> dict[str, Any]:
    return {"content": [logprob_dict(one) for one in event.logprobs], "refusal": None}


def _one_logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.bytes)}
