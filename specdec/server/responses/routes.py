"""`/v1/responses`, by OpenAI's documents."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from specdec.server.connection import EventStream, begun, json_response, named_event_bytes, unless_gone
from specdec.server.errors import api_error, bad_request
from specdec.server.events import ChatEvent, ChatRequest, Finished
from specdec.server.fields import Fields
from specdec.server.responses.events import Event, ResponseFrame
from specdec.server.responses.request import ResponseForm, read_response_request
from specdec.server.responses.store import ResponseStore, StoredResponse
from specdec.server.site import site_of

PATH = "/v1/responses"
_MOST_LISTED = 100


def routes() -> list[BaseRoute]:
    """The endpoints."""
    return [
        Route(PATH, create, methods=["POST"]),
        Route(f"{PATH}/input_tokens", count_tokens, methods=["POST"]),
        Route(f"{PATH}/{{response_id}}", retrieve, methods=["GET"]),
        Route(f"{PATH}/{{response_id}}", delete, methods=["DELETE"]),
        Route(f"{PATH}/{{response_id}}/input_items", input_items, methods=["GET"]),
    ]


async def create(request: Request) -> Any:
    """Answer."""
    site = site_of(request)
    chat, form = await _read(request)
    prompt = await site.chat.prompt(chat)
    frame = ResponseFrame(form)
    keep = functools.partial(_keep, store_of(request), chat.owner, form, frame)
    events = site.chat.stream(chat, prompt=prompt)
    if form.stream:
        return EventStream(_stream(frame, await begun(request, events), keep))
    await unless_gone(request.receive, _finish(frame, events))
    keep()
    return json_response(frame.response)


async def count_tokens(request: Request) -> Response:
    """The tokens of a request's prompt."""
    chat, _ = await _read(request)
    prompt = await site_of(request).chat.rendered(chat)
    return json_response({"object": "response.input_tokens", "input_tokens": len(prompt.ids)})


async def retrieve(request: Request) -> Response:
    """A response that was kept."""
    if request.query_params.get("stream", "false").lower() not in ("false", "0", ""):
        raise bad_request("'stream' is not supported here: a response is kept when it is complete", "stream")
    return json_response(_stored(request).response)


async def delete(request: Request) -> Response:
    """Forget a response."""
    name = request.path_params["response_id"]
    store_of(request).delete(site_of(request).owner(request), name)
    return json_response({"id": name, "object": "response", "deleted": True})


async def input_items(request: Request) -> Response:
    """The items that a response was the answer to, a page of them."""
    stored, query = _stored(request), Fields(dict(request.query_params))
    order, after, limit = query.choice("order", ("asc", "desc")) or "desc", query.text("after"), query.text("limit")
    if limit is not None and not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _MOST_LISTED):
        raise query.wrong("limit", f"a whole number from 1 to {_MOST_LISTED}", limit)
    items = [*stored.before, *stored.input]
    if order == "desc":
        items.reverse()
    if after is not None:
        names = [item["id"] for item in items]
        if after not in names:
            raise query.wrong("after", "the id of one of the items", after)
        items = items[names.index(after) + 1 :]
    page = items[: int(limit or 20)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return json_response({"object": "list", "data": page, **ends, "has_more": len(items) > len(page)})


def store_of(request: Request) -> ResponseStore:
    """The application's store of responses."""
    store: ResponseStore = request.app.state.responses
    return store


def _stored(request: Request) -> StoredResponse:
    return store_of(request).get(site_of(request).owner(request), request.path_params["response_id"])


async def _read(request: Request) -> tuple[ChatRequest, ResponseForm]:
    site = site_of(request)
    owner = site.owner(request)
    previous = functools.partial(store_of(request).previous, owner)
    body = await site.body(request)
    return read_response_request(body, site.model.config, site.settings, owner=owner, previous=previous)


async def _stream(
    frame: ResponseFrame, events: AsyncGenerator[ChatEvent, None], keep: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    for one in frame.begin():
        yield named_event_bytes(one)
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Finished):
                    made: Iterable[Event] = list(frame.events_of(event))
                    keep()  # before the client can ask for it
                else:
                    made = frame.events_of(event)
                for one in made:
                    yield named_event_bytes(one)
    except Exception as error:
        for one in frame.fail(api_error(error)):
            yield named_event_bytes(one)


async def _finish(frame: ResponseFrame, events: AsyncGenerator[ChatEvent, None]) -> None:
    async with aclosing(events):
        async for event in events:
            for _ in frame.events_of(event):
                pass


def _keep(store: ResponseStore, owner: str, form: ResponseForm, frame: ResponseFrame) -> None:
    if form.store:
        store.keep(owner, StoredResponse(frame.response, form.input, form.before))
