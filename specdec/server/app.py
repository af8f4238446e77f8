"""The application: routes, errors in OpenAI's form, and what stands around them. `create_app`."""

from __future__ import annotations

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specdec.engine.batch import Batch
from specdec.model.loaded import Model
from specdec.server.anthropic.routes import routes as anthropic_routes
from specdec.server.chat_completions import chat_completions
from specdec.server.completions import completions
from specdec.server.connection import error_response
from specdec.server.errors import ApiError, api_error
from specdec.server.guard import Guard
from specdec.server.operations import health, metrics, model, models
from specdec.server.page_routes import page_routes
from specdec.server.responses.routes import routes as response_routes
from specdec.server.responses.store import ResponseStore
from specdec.server.settings import ServerSettings
from specdec.server.site import Site
from specdec.server.tokens import detokenize, tokenize, tokenizer_info


def create_app(model: Model, batch: Batch, settings: ServerSettings) -> Starlette:
    """The server's application; `app.state.site` is its `Site`.

    Args:
        model: from `specdec.load`.
        batch: of the model; the caller closes it.
        settings: names, limits and access.
    """
    app = Starlette(
        routes=routes(),
        middleware=[
            *_cors(settings),
            Middleware(Guard, settings=settings),
            Middleware(_Refusals),
        ],
        exception_handlers={HTTPException: _unknown},
    )
    app.state.site = Site.of(model, batch, settings)
    app.state.responses = ResponseStore()
    return app


def routes() -> list[BaseRoute]:
    """Every endpoint."""
    return [
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", tokenizer_info),
        Route("/health", health),
        Route("/metrics", metrics),
        *anthropic_routes(),
        *response_routes(),
        *page_routes(),
    ]


def _cors(settings: ServerSettings) -> list[Middleware]:
    if not settings.cors:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    ]


class _Refusals:
    """Answers with an error in OpenAI's form whatever an endpoint raises before its response has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            pass  # the client is gone: a response would not be read
        except Exception as error:
            found = api_error(error)
            if not has_begun:
                await error_response(found, scope["path"])(scope, receive, send)


async def _unknown(request: Request, error: Exception) -> Response:
    """An unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    meant = _meant(request.url.path) if error.status_code == 404 else None
    found = ApiError(
        error.status_code,
        f"{phrase}: {request.method} {request.url.path[:200]}" + (f": the path is {meant}" if meant else ""),
        code="unknown_url" if error.status_code == 404 else None,
        headers=error.headers,
    )
    return error_response(found, request.url.path)


def _meant(path: str) -> str | None:
    """The endpoint of a path whose base lacks /v1, has it twice, or ends in a slash; None if there is none."""
    plain = "/" + "/".join(filter(None, path.split("/")))
    known = {route.path for route in routes() if isinstance(route, Route)}
    return next((one for one in (plain, f"/v1{plain}", plain.removeprefix("/v1")) if one in known - {"/"}), None)
