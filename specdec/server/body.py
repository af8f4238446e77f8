"""Reading the body of a request: bounded in bytes and in time, and JSON by the standard."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from specdec.parse import ParseError, parse_json
from specdec.server.errors import ApiError, bad_request

BODY_TIMEOUT_S = 60.0
_INLINE_BYTES = 1 << 16  # larger bodies are parsed in a thread


async def read_object(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object that a request carries.

    Args:
        request: whose body has not been read.
        max_bytes: largest body.

    Raises:
        ApiError: the body is too large, takes too long to arrive, or is not a JSON object.
        starlette.requests.ClientDisconnect: the client went away.
    """
    body = await _read(request, max_bytes)
    try:
        if len(body) <= _INLINE_BYTES:
            value = parse_json(body, strict=True)
        else:
            value = await asyncio.to_thread(parse_json, body, strict=True)
    except ParseError as error:
        raise bad_request(f"the body {error}: send one JSON object", code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} seconds", code="timeout") from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {max_bytes} bytes: send less",
        code="request_too_large",
        headers={"Connection": "close"},
    )
