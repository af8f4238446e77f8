"""An answer in the form of OpenAI's responses: the events of a stream, and the response that they make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from specdec.server.chat_format import logprob_dict, outcome_dict, repeat_dict
from specdec.server.errors import ApiError
from specdec.server.events import (
    ChatEvent,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallStart,
    Usage,
)
from specdec.server.responses.items import Item, new_id
from specdec.server.responses.request import ResponseForm

Event = dict[str, Any]


class ResponseFrame:
    """Makes the events of one response, numbered, and the response.

    Args:
        form: of the request.

    Attributes:
        response: as it is by now.
    """

    def __init__(self, form: ResponseForm) -> None:
        self._logprobs = form.logprobs
        self._sent = 0  # events
        self._open: Item | None = None  # the last item of the output, if it is not complete
        self._texts: list[str] = []  # of that item: text or arguments
        self.response: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": form.model,
            "output": [],
            "usage": None,
            **form.echo,
        }

    def begin(self) -> Iterator[Event]:
        """The first events."""
        yield self._of_response("response.created")
        yield self._of_response("response.in_progress")

    def events_of(self, event: ChatEvent) -> Iterator[Event]:
        """The events that one of the answer's becomes."""
        if isinstance(event, Finished):
            yield from self._end(event)
        elif isinstance(event, ToolCallStart):
            names = {"call_id": event.id, "name": event.name, "arguments": ""}
            yield from self._begin_item({"id": new_id("fc"), "type": "function_call", **names})
        elif isinstance(event, ToolArgumentsDelta):
            self._texts.append(event.text)
            yield self._of_item("response.function_call_arguments.delta", delta=event.text)
        elif event.text or event.logprobs:
            yield from self._text(event)

    def fail(self, error: ApiError) -> Iterator[Event]:
        """The last event of an answer that broke off by an error."""
        yield from self._end_item("incomplete")
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        yield self._of_response("response.failed")

    @property
    def _item(self) -> Item:
        assert self._open is not None
        return self._open

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _text(self, event: TextDelta | ReasoningDelta) -> Iterator[Event]:
        """More of a message, or of reasoning."""
        is_text = isinstance(event, TextDelta)
        kind = "message" if is_text else "reasoning"
        if self._open is None or self._open["type"] != kind:
            if is_text:
                item = {"id": new_id("msg"), "type": kind, "role": "assistant", "content": []}
                part: Item = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            else:
                item = {"id": new_id("rs"), "type": kind, "summary": [], "content": []}
                part = {"type": "reasoning_text", "text": ""}
            yield from self._begin_item(item)
            self._item["content"] = [part]
            yield self._of_part("response.content_part.added", part=part | {"logprobs": []} if is_text else dict(part))
        self._texts.append(event.text)
        if not is_text:
            yield self._of_part("response.reasoning_text.delta", delta=event.text)
            return
        logprobs = [logprob_dict(one) for one in event.logprobs] if self._logprobs else []
        self._item["content"][0]["logprobs"] += logprobs
        yield self._of_part("response.output_text.delta", delta=event.text, logprobs=logprobs)

    def _begin_item(self, item: Item) -> Iterator[Event]:
        yield from self._end_item("completed")
        self._open, self._texts = {**item, "status": "in_progress"}, []
        self.response["output"].append(self._open)
        yield self._next("response.output_item.added", output_index=self._index, item=dict(self._open))

    def _end_item(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        item, text = self._open, "".join(self._texts)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            named = {"arguments": item["arguments"], "name": item["name"]}
            yield self._of_item("response.function_call_arguments.done", **named)
        else:
            part = item["content"][0]
            part["text"] = text
            if item["type"] == "message":
                yield self._of_part("response.output_text.done", text=text, logprobs=part["logprobs"])
            else:
                yield self._of_part("response.reasoning_text.done", text=text)
            yield self._of_part("response.content_part.done", part=dict(part))
        yield self._next("response.output_item.done", output_index=self._index, item=dict(item))
        self._open = None

    def _end(self, finished: Finished) -> Iterator[Event]:
        is_cut = finished.reason == "length"
        yield from self._end_item("incomplete" if is_cut else "completed")
        self.response |= {
            "status": "incomplete" if is_cut else "completed",
            "completed_at": None if is_cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": _usage(finished.usage),
            "specdec": repeat_dict(finished),
            **outcome_dict([finished]),
        }
        yield self._of_response("response.incomplete" if is_cut else "response.completed")

    def _of_response(self, kind: str) -> Event:
        return self._next(kind, response={**self.response, "output": [dict(one) for one in self.response["output"]]})

    def _of_item(self, kind: str, **fields: Any) -> Event:
        return self._next(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _of_part(self, kind: str, **fields: Any) -> Event:
        return self._of_item(kind, content_index=0, **fields)

    def _next(self, kind: str, **fields: Any) -> Event:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **fields}


def _usage(usage: Usage) -> Mapping[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
