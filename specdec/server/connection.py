"""Clients that go away, and server-sent events: `unless_gone`, `EventStream`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from specdec.server.anthropic.errors import PATH, error_dict
from specdec.server.errors import ApiError, api_error

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """Compact JSON. Half of a surrogate pair, which a model can escape into arguments of a call, stays escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def event_bytes(value: Any) -> bytes:
    """A server-sent event without a name, as OpenAI's streams have them."""
    return b"data: " + to_json(value) + b"\n\n"


def named_event_bytes(event: Mapping[str, Any]) -> bytes:
    """A server-sent event that is named by its type."""
    return f"event: {event['type']}\ndata: ".encode() + to_json(event) + b"\n\n"


def json_response(value: Any) -> Response:
    """A response that is one JSON value."""
    return Response(to_json(value), media_type="application/json")


def error_response(error: ApiError, path: str) -> Response:
    """An error in the form of the interface that the request's path belongs to, OpenAI's for all other paths."""
    value = error_dict(error) if path.startswith(PATH) else error.to_dict()
    return Response(to_json(value), error.status, headers=error.headers, media_type="application/json")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. It is cancelled when the client closes the connection.

    Args:
        receive: of a request whose body has been read.
        work: to wait for.

    Raises:
        ClientDisconnect: the client is gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def begun(request: Request, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`events` once the first is there: what goes wrong before it becomes a status, and not an event.

    Raises:
        ClientDisconnect: the client went away before.
        Exception: what `events` raises before its first event.
    """
    try:
        first = await unless_gone(request.receive, anext(events))  # type: ignore[arg-type]
    except BaseException:
        await events.aclose()
        raise
    return _chained(first, events)


async def _chained(first: T, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    try:
        yield first
        async for event in events:
            yield event
    finally:
        await events.aclose()


class EventStream:
    """A response of server-sent events. It ends its source when the client goes away.

    Args:
        source: bytes of events.
        headers: further ones.
    """

    def __init__(self, source: AsyncGenerator[bytes, None], *, headers: dict[str, str] | None = None) -> None:
        self._source = source
        named = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **(headers or {}),
        }
        self._headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await unless_gone(receive, self._send(send))
        except (ClientDisconnect, OSError):
            pass
        finally:
            await self._source.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        async for part in self._source:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_errors(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """An OpenAI stream's bytes; an error on the way becomes an event in OpenAI's form, and ends it."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        yield event_bytes(api_error(error).to_dict())
    yield DONE


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
