"""`POST /v1/messages` and `POST /v1/messages/count_tokens`, by Anthropic's documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from specdec.server.anthropic.errors import PATH, error_dict
from specdec.server.anthropic.events import PING, Event, MessageFrame
from specdec.server.anthropic.request import MessageForm, read_messages_request
from specdec.server.connection import EventStream, begun, json_response, named_event_bytes, unless_gone
from specdec.server.errors import api_error
from specdec.server.events import ChatEvent, ChatRequest
from specdec.server.site import Site, site_of

PING_EVERY_S = 10.0


def routes() -> list[BaseRoute]:
    """The endpoints."""
    return [
        Route(PATH, messages, methods=["POST"]),
        Route(f"{PATH}/count_tokens", count_tokens, methods=["POST"]),
    ]


async def messages(request: Request) -> Any:
    """Answer a conversation."""
    site = site_of(request)
    chat, form = await _read(site, request)
    prompt = await site.chat.prompt(chat)
    frame = MessageFrame(form.model, len(prompt.ids), shows_thinking=form.shows_thinking)
    events = site.chat.stream(chat, prompt=prompt)
    if form.stream:
        return EventStream(_stream(frame, await begun(request, events)))
    return json_response(await unless_gone(request.receive, _whole(frame, events)))


async def count_tokens(request: Request) -> Response:
    """The tokens of a conversation's prompt."""
    site = site_of(request)
    chat, _ = await _read(site, request, counts=True)
    prompt = await site.chat.rendered(chat)
    return json_response({"input_tokens": len(prompt.ids)})


async def _read(site: Site, request: Request, *, counts: bool = False) -> tuple[ChatRequest, MessageForm]:
    body = await site.body(request)
    return read_messages_request(body, site.model.config, site.settings, owner=site.owner(request), counts=counts)


async def _stream(frame: MessageFrame, events: AsyncGenerator[ChatEvent, None]) -> AsyncGenerator[bytes, None]:
    yield named_event_bytes(frame.begin())
    yield named_event_bytes(PING)
    try:
        async with aclosing(_with_pings(events)) as found:
            async for event in found:
                if event is None:
                    yield named_event_bytes(PING)
                else:
                    for one in frame.events_of(event):
                        yield named_event_bytes(one)
    except Exception as error:
        yield named_event_bytes(error_dict(api_error(error)))


async def _whole(frame: MessageFrame, events: AsyncGenerator[ChatEvent, None]) -> Event:
    made: list[Event] = []
    async with aclosing(events):
        async for event in events:
            made += frame.events_of(event)
    return frame.whole(made)


async def _with_pings(events: AsyncGenerator[ChatEvent, None]) -> AsyncGenerator[ChatEvent | None, None]:
    """The events, and None whenever none has come for a while."""
    waiting: asyncio.Future[ChatEvent] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait({waiting}, timeout=PING_EVERY_S))[0]:
                yield None
            try:
                event = waiting.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await events.aclose()
