"""Everything that the endpoints of a server share: `Site`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from specdec.engine.batch import Batch
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
        """The site of a model and its batch."""
        metrics = Metrics(settings.name)
        return cls(model, settings, Answers(model, batch, metrics, context=settings.context))

    @property
    def metrics(self) -> Metrics:
        """Of the server."""
        return self.answers.metrics

    async def body(self, request: Request) -> dict[str, Any]:
        """The JSON object that a request carries.

        Raises:
            ApiError: see `read_object`.
        """
        return await read_object(request, max_bytes=self.settings.max_body_bytes)

    def owner(self, request: Request) -> str:
        """Who asks, in a form that does not tell the key."""
        owner: str = request.scope.get("specdec.owner", "")
        return owner


def site_of(request: Request) -> Site:
    """The site that a request came to."""
    site: Site = request.app.state.site
    return site
