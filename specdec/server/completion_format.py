"""Continued texts in the form of OpenAI's completions: chunks of a stream, or one object."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specdec.server.chat_format import FINGERPRINT, origin_dict, outcome_dict, repeat_dict, usage_dict
from specdec.server.completion_request import CompletionRequest
from specdec.server.events import ChatEvent, Finished, TextDelta, TokenLogprob, Usage
from specdec.server.timings import merged_usage


class CompletionFrame:
    """What the chunks of a stream and a whole answer have in common.

    Args:
        asked: the request.
    """

    def __init__(self, asked: CompletionRequest) -> None:
        self._asked = asked
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._shown: dict[int, int] = {}  # characters of each choice whose tokens' log-probabilities were sent

    def chunk_of(self, number: int, event: ChatEvent) -> dict[str, Any]:
        """The chunk of an event of a choice."""
        if isinstance(event, Finished):
            ended = self._choice(number, "", event.reason)
            ended["specdec"] = repeat_dict(event)
            return self._frame([ended]) | outcome_dict([event])
        assert isinstance(event, TextDelta)
        made = self._choice(number, event.text)
        if self._asked.logprobs is not None:
            offset = self._shown.get(number, 0)
            made["logprobs"] = logprobs_dict(event.logprobs, offset, most=self._asked.logprobs)
            self._shown[number] = offset + sum(_characters(entry) for entry in event.logprobs)
        if self._asked.token_origins:
            made["specdec"] = origin_dict(event.origins)
        return self._frame([made])

    def usage_chunk(self, finished: Mapping[int, Finished]) -> dict[str, Any]:
        """The last chunk, for callers who asked for the usage."""
        return self._frame([]) | {"usage": usage_dict(self._usage(finished))}

    def whole(self, answers: Mapping[int, Sequence[ChatEvent]]) -> dict[str, Any]:
        """The answer of a request without `stream`, from the events of each choice."""
        finished = {number: event for number, events in answers.items() if isinstance(event := events[-1], Finished)}
        choices = [self._whole_choice(number, answers[number], finished[number]) for number in sorted(answers)]
        return (
            self._frame(choices)
            | {"usage": usage_dict(self._usage(finished))}
            | outcome_dict([finished[number] for number in sorted(finished)])
        )

    def _whole_choice(self, number: int, events: Sequence[ChatEvent], end: Finished) -> dict[str, Any]:
        deltas = [event for event in events if isinstance(event, TextDelta)]
        choice = self._choice(number, "".join(delta.text for delta in deltas), end.reason)
        if self._asked.logprobs is not None:
            entries = [entry for delta in deltas for entry in delta.logprobs]
            choice["logprobs"] = logprobs_dict(entries, 0, most=self._asked.logprobs)
        origins = [origin for delta in deltas for origin in delta.origins]
        choice["specdec"] = repeat_dict(end) | (origin_dict(origins) if self._asked.token_origins else {})
        return choice

    def _usage(self, finished: Mapping[int, Finished]) -> Usage:
        """Tokens of all choices; each prompt counts once."""
        per_prompt: dict[int, list[Usage]] = {}
        for number, event in finished.items():
            per_prompt.setdefault(number // self._asked.choices, []).append(event.usage)
        merged = [merged_usage(usages) for usages in per_prompt.values()]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in merged),
            completion_tokens=sum(usage.completion_tokens for usage in merged),
            cached_tokens=sum(usage.cached_tokens for usage in merged),
        )

    def _choice(self, number: int, text: str, reason: str | None = None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": None, "finish_reason": reason}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._asked.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }


def logprobs_dict(entries: Iterable[TokenLogprob], offset: int, *, most: int) -> dict[str, Any]:
    """OpenAI's `logprobs` of completions.

    Args:
        entries: of the tokens; a prompt's first one has no log-probability, NaN here.
        offset: characters of the choice before them.
        most: rivals of each token to tell.
    """
    made: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        known = not math.isnan(entry.logprob)
        rivals: dict[str, float] = {}
        for one in entry.top[:most]:
            rivals.setdefault(_name(one), one.logprob)  # the likeliest, where several tokens have one name
        made["tokens"].append(_name(entry))
        made["token_logprobs"].append(entry.logprob if known else None)
        made["top_logprobs"].append(rivals if known else None)
        made["text_offset"].append(offset)
        offset += _characters(entry)
    return made


def _characters(entry: TokenLogprob) -> int:
    """Characters that begin in a token."""
    return sum(byte & 0xC0 != 0x80 for byte in entry.bytes)


def _name(entry: TokenLogprob) -> str:
    """A token's text; its bytes as OpenAI writes them where they are a part of a character."""
    try:
        entry.bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.bytes)
    return entry.text
