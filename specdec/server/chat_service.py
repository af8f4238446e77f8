"""Answers to chat requests as events: `ChatService`. Protocols translate their requests into it and its events back."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from specdec.engine.prompt import EncodedPrompt, encode_prompt
from specdec.errors import InvalidArgumentError
from specdec.server.answer_events import answer_events
from specdec.server.answers import Answers
from specdec.server.chat_reader import ChatReader
from specdec.server.errors import bad_request
from specdec.server.events import ChatEvent, ChatRequest
from specdec.server.sampling import seed_of_choice
from specdec.server.settings import ServerSettings


class ChatService:
    """Renders a chat, lets the batch answer it, and reads text, reasoning and tool calls out of what comes.

    Args:
        answers: of the model.
        settings: of the server.
    """

    def __init__(self, answers: Answers, settings: ServerSettings) -> None:
        self._answers, self._settings = answers, settings

    async def prompt(self, request: ChatRequest) -> EncodedPrompt:
        """The request's prompt in tokens.

        Raises:
            ApiError: it does not fit into the context.
            InvalidArgumentError: the chat template refuses it.
        """
        return await self._answers.encode(lambda: self._encoded(request))

    async def rendered(self, request: ChatRequest) -> EncodedPrompt:
        """The same, however long it is."""
        return await self._answers.work(lambda: self._encoded(request))

    async def stream(
        self, request: ChatRequest, *, choice: int = 0, prompt: EncodedPrompt | None = None
    ) -> AsyncGenerator[ChatEvent, None]:
        """An answer's events, `Finished` last. Closing the generator ends the answer at the next pass.

        Args:
            request: checked.
            choice: number of the answer among several to the request; each has a seed of its own.
            prompt: of the request, where it is known already.

        Raises:
            ApiError: the request cannot be answered.
            SpecdecError: see `Batch.submit`.
        """
        asked_s = time.perf_counter()
        if prompt is None:
            prompt = await self.prompt(request)
        seed = seed_of_choice(request.options.get("seed", 0), choice)
        events = answer_events(
            self._answers,
            prompt,
            ChatReader(),
            options={**request.options, "seed": seed},
            owner=request.owner,
            deadline_s=request.deadline_s,
            asked_s=asked_s,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    def _encoded(self, request: ChatRequest) -> EncodedPrompt:
        model = self._answers.model
        variables: dict[str, Any] = dict(request.options.get("chat_template_kwargs") or {})
        if request.tools and request.tool_choice != "none":
            variables["tools"] = list(request.tools)
        variables |= {
            "add_generation_prompt": not request.continue_final,
            "continue_final_message": request.continue_final,
        }
        try:
            return encode_prompt(request.messages, model.tokenizer, model.config, variables=variables)
        except InvalidArgumentError as error:
            raise bad_request(str(error), "messages") from None
