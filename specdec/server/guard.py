"""Access: `Guard` checks Host, Origin and API key of every request before anything else runs."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specdec.server.connection import error_response
from specdec.server.errors import ApiError
from specdec.server.settings import ServerSettings

# Without a key: a page cannot send one while the browser loads it, and health says nothing of anybody.
OPEN_PATHS = ("/health", "/")
OPEN_FOLDER = "/page/"


class Guard:
    """Refuses requests of strangers.

    A server on a loopback address is reached by pages of any site through a name that points to it, so it answers to
    loopback names only. A page may ask a server of another origin only when the operator allowed that origin.

    Args:
        app: what it guards.
        settings: of the server.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._is_loopback = is_loopback(settings.host)
        self._own_name = settings.host.lower()
        self._origins = frozenset(settings.origins)
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = _with_request_id(send, headers.get("x-request-id", ""))
        try:
            self._check_host(headers)
            self._check_origin(headers)
            scope["specdec.owner"] = self._owner(scope["path"], headers)
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        if not self._is_loopback:
            return
        name = _host_name(headers.get("host", ""))
        if name != self._own_name and not is_loopback(name):
            raise ApiError(403, f"this server answers to localhost, not to {name[:100]!r}", code="host_not_allowed")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return
        host = headers.get("host", "").lower()
        if origin.lower() not in (f"http://{host}", f"https://{host}"):
            named = origin[:100] if origin.startswith("http") else "'*'"  # "null": a page that is a file
            raise ApiError(
                403,
                f"pages of {origin[:100]!r} may not use this server: start it with --cors {named}",
                code="origin_not_allowed",
            )

    def _owner(self, path: str, headers: Headers) -> str:
        """The owner of a key, "" without keys.

        Raises:
            ApiError: the key is missing or wrong.
        """
        if not self._keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest, found = _digest(given), False
        for known in self._keys:  # all of them, so that the time tells nothing
            found |= secrets.compare_digest(digest, known)
        if not found:
            message = "Incorrect API key provided." if given else "You didn't provide an API key: send it as a bearer."
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return digest.hex()


def is_loopback(name: str) -> bool:
    """Whether a host name or address is this machine's own."""
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _with_request_id(send: Send, asked: str) -> Send:
    """`send` that adds the request's id to the response: the client's, if it sent a short one."""
    known = asked if 0 < len(asked) <= 64 and asked.isascii() and asked.isprintable() else f"req_{secrets.token_hex(8)}"

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = known
        await send(message)

    return sending
