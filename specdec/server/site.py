"""Everything that the endpoints of a server share: `Site`."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from specdec.engine.batch import Batch
from specdec.errors import InvalidArgumentError
from specdec.model.loaded import Model
from specdec.server.answers import Answers
from specdec.server.body import read_object
from specdec.server.chat_service import ChatService
from specdec.server.metrics import Metrics
from specdec.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Site:
    """A model, its batch, and how the server is set up.

    Attributes:
        model: that answers.
        settings: of the operator.
        answers: begins them.
        chat: answers chats.
        metrics: of the server.
    """

    model: Model
    settings: ServerSettings
    answers: Answers
    chat: ChatService = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chat", ChatService(self.answers, self.settings))

    @classmethod
    def of(cls, model: Model, batch: Batch, settings: ServerSettings) -> Site:
        """The site of a model and its batch.

        Raises:
            InvalidArgumentError: the batch has no room for any answer.
        """
        metrics, status = Metrics(settings.name), batch.status()
        _add_gauges(metrics, batch)
        answers = Answers(model, batch, metrics, context=_fitting(model, status.cache_bytes), most=status.max_sequences)
        return cls(model, settings, answers)

    @property
    def metrics(self) -> Metrics:
        """Metrics of the server."""
        return self.answers.metrics

    async def body(self, request: Request) -> dict[str, Any]:
        """The JSON object that a request carries.

        Raises:
            ApiError: see `read_object`.
        """
        return await read_object(request, max_bytes=self.settings.max_body_bytes)

    def owner(self, request: Request) -> str:
        """The client that asks, in a form that does not reveal the key."""
        owner: str = request.scope.get("specdec.owner", "")
        return owner


def site_of(request: Request) -> Site:
    """The site that a request came to."""
    site: Site = request.app.state.site
    return site


def _add_gauges(metrics: Metrics, batch: Batch) -> None:
    """Gauges of what the batch is doing."""
    metrics.gauge("num_requests_running", "Answers that grow.", lambda: batch.status().running)
    metrics.gauge("num_requests_waiting", "Requests that wait for their turn.", lambda: batch.status().waiting)
    metrics.gauge(
        "kv_cache_usage_perc",
        "Share of the bytes allowed for keys and values that is used; 1 is all.",
        lambda: batch.status().cache_bytes_used / batch.status().cache_bytes,
    )


def _fitting(model: Model, cache_bytes: int) -> int:
    """The longest context, up to the model's, whose keys and values fit.

    Raises:
        InvalidArgumentError: not even two tokens do.
    """
    most = model.config.max_context
    if model.runtime.cache_bytes(most) <= cache_bytes:
        return most
    fits = bisect.bisect_right(range(most), cache_bytes, key=model.runtime.cache_bytes) - 1
    if fits < 2:
        raise InvalidArgumentError(f"cache_bytes allows {cache_bytes} bytes, which holds no answer: allow more")
    return fits
