"""What operators and clients ask before and between answers: `/v1/models`, `/health`, `/metrics`."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from specdec.server.chat_request import no_such_model
from specdec.server.site import Site, site_of

_STARTED_S = int(time.time())


async def models(request: Request) -> Response:
    """The names that requests may call the model."""
    site = site_of(request)
    return JSONResponse({"object": "list", "data": [_described(site, name) for name in site.settings.names]})


async def model(request: Request) -> Response:
    """One of them.

    Raises:
        ApiError: there is no such model.
    """
    site, name = site_of(request), request.path_params["name"]
    if name not in site.settings.names:
        raise no_such_model(name, site.settings)
    return JSONResponse(_described(site, name))


async def health(request: Request) -> Response:
    """Whether requests are answered.

    Raises:
        ApiError: they are not, see `Answers.check_open`.
    """
    site_of(request).answers.check_open()
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    return Response(site_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _described(site: Site, name: str) -> dict[str, Any]:
    config = site.model.config
    return {
        "id": name,
        "object": "model",
        "created": _STARTED_S,
        "owned_by": "specdec",
        "max_model_len": site.answers.context,
        "meta": {"n_vocab": config.vocab_size, "n_ctx": site.answers.context, "n_ctx_train": config.max_context},
        "specdec": {"verify_efforts": sorted(site.settings.efforts)},
    }
