"""`POST /v1/chat/completions`, by OpenAI's documents."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from specdec.server.chat_format import ChatFrame, Collected, chunk_usage
from specdec.server.chat_request import ChatForm, read_chat
from specdec.server.choices import together
from specdec.server.connection import EventStream, begun, event_bytes, json_response, unless_gone, with_errors
from specdec.server.events import ChatEvent, ChatRequest, Finished
from specdec.server.site import Site, site_of


async def chat_completions(request: Request) -> Any:
    """Answer a chat."""
    site = site_of(request)
    body = await site.body(request)
    chat, form = read_chat(body, site.model.config, site.settings, owner=site.owner(request))
    frame = ChatFrame(form.model, logprobs=form.logprobs, token_origins=form.token_origins)
    events = _events(site, chat, form)
    if form.stream:
        begun_events = await begun(request, events)
        return EventStream(with_errors(_chunks(frame, form, begun_events)))
    return json_response(await unless_gone(request.receive, _whole(frame, form, events)))


async def _events(site: Site, chat: ChatRequest, form: ChatForm) -> AsyncGenerator[tuple[int, ChatEvent], None]:
    """Events of all choices, each with its number."""
    prompt = await site.chat.prompt(chat)
    streams = [
        site.chat.stream(chat, choice=number, prompt=prompt, counts=form.continuous_usage)
        for number in range(form.choices)
    ]
    async with aclosing(together(streams, most=site.answers.most)) as events:
        async for event in events:
            yield event


async def _chunks(
    frame: ChatFrame, form: ChatForm, events: AsyncGenerator[tuple[int, ChatEvent], None]
) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream."""
    finished: list[Finished] = []
    more: dict[str, Any] = {"usage": None} if form.include_usage else {}
    async with aclosing(events):
        for number in range(form.choices):
            yield event_bytes(frame.first_chunk(number) | more)
        async for number, event in events:
            if isinstance(event, Finished):
                finished.append(event)
            usage = chunk_usage(event, include=form.include_usage, continuous=form.continuous_usage)
            yield event_bytes(frame.chunk_of(number, event) | usage)
    if form.include_usage:
        yield event_bytes(frame.usage_chunk(finished))


async def _whole(
    frame: ChatFrame, form: ChatForm, events: AsyncGenerator[tuple[int, ChatEvent], None]
) -> dict[str, Any]:
    answers = [Collected() for _ in range(form.choices)]
    async with aclosing(events):
        async for number, event in events:
            answers[number].add(event)
    return frame.whole(answers)
