"""A chat request and the events of its answer, independent of the protocol that carries them.

The endpoints translate: OpenAI's chat completions, OpenAI's responses, Anthropic's messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability, and its likeliest rivals with theirs.

    Attributes:
        token: id.
        text: of the token, as OpenAI's `token`.
        bytes: of the token; a token may be a part of a character.
        logprob: natural logarithm, of the raw softmax, before masks and temperature.
        top: the likeliest tokens at this position, likeliest first.
    """

    token: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOrigin:
    """A token's text and who produced it.

    Attributes:
        text: of the token, "" while a character is incomplete.
        origin: "verifier", or the name of the drafter whose token was accepted.
    """

    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    origins: tuple[TokenOrigin, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    origins: tuple[TokenOrigin, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins: its number in the answer from 0, its id and the function's name."""

    index: int
    id: str
    name: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that were read and written.

    Attributes:
        prompt_tokens: of the prompt.
        completion_tokens: of the answer, end token included.
        cached_tokens: number of prompt tokens that were not read again.
        reasoning_tokens: of the answer, those before its text.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer; always the last event.

    Attributes:
        reason: "stop", "length" or "tool_calls".
        usage: tokens.
        stop_string: the caller's stop string that ended the answer, if one did.
        timings: in llama-server's names.
        metrics: the request's own metrics, `speculative_decoding` in vLLM's names among them.
        seed: that sampled it.
        identical_to: what plain decoding the answer equals, see `specdec.Result`.
    """

    reason: str
    usage: Usage
    stop_string: str | None = None
    timings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    identical_to: str = ""


ChatEvent: TypeAlias = TextDelta | ReasoningDelta | ToolCallStart | ToolArgumentsDelta | Finished
"""All but the last have the `usage` so far, if that is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat request, checked.

    Attributes:
        messages: in the form of OpenAI's chat API, which chat templates read.
        tools: OpenAI's `{"type": "function", "function": {...}}`.
        tool_choice: "auto", "none", "required", or the name of a function as `{"name": ...}`.
        parallel_tool_calls: False allows one call at most.
        continue_final: the last message is an assistant's, to be continued.
        begin_answer: the prompt ends with what begins an answer, unless `continue_final`.
        streamed: the caller sees the answer while it grows; False holds tool calls back until they are complete, so
            that a malformed one is text as a whole.
        options: keyword arguments of `specdec.stream` (`max_tokens`, `temperature`, `seed`, `stop`, ...).
        owner: the client that asks; prefixes are shared between requests of one owner only.
        deadline_s: seconds from now after which the answer ends where it is; None for no limit.
        schema_field: what the interface calls the schema that the answer must follow, for errors.
        messages_field: what it calls the messages, likewise.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, str] = "auto"
    parallel_tool_calls: bool = True
    continue_final: bool = False
    begin_answer: bool = True
    streamed: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""
    deadline_s: float | None = None
    schema_field: str = "response_format"
    messages_field: str = "messages"
