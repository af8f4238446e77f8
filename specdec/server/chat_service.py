"""Answers to chat requests as events: `ChatService`. Protocols translate their requests into it and its events back."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from specdec.engine.prompt import EncodedPrompt, encode_prompt
from specdec.errors import GrammarError, InvalidArgumentError
from specdec.server.answer_events import answer_events
from specdec.server.answer_form import AnswerForm
from specdec.server.answers import Answers
from specdec.server.chat_reader import ChatReader, FormReader
from specdec.server.errors import bad_request
from specdec.server.events import ChatEvent, ChatRequest
from specdec.server.logprobs import describer
from specdec.server.sampling import seed_of_choice
from specdec.server.settings import ServerSettings
from specdec.tokenizers.messages import checked_messages

_END_TOKENS = 32  # of a prompt; the chat template's last marker is among them


class ChatService:
    """Renders a chat, lets the batch answer it, and reads text, reasoning and tool calls out of what comes.

    Args:
        answers: of the model.
        settings: of the server.
    """

    def __init__(self, answers: Answers, settings: ServerSettings) -> None:
        self._answers, self._settings = answers, settings
        tokenizer = answers.model.tokenizer
        self._form = None if tokenizer is None else AnswerForm.of(tokenizer)

    async def prompt(self, request: ChatRequest) -> EncodedPrompt:
        """The request's prompt in tokens.

        Raises:
            ApiError: it does not fit into the context, or the chat template refuses it.
        """
        return await self._answers.encode(lambda: self._encoded(request), param=request.messages_field)

    async def rendered(self, request: ChatRequest) -> EncodedPrompt:
        """The same, however long it is.

        Raises:
            ApiError: the chat template refuses it.
        """
        try:
            return await self._answers.work(lambda: self._encoded(request, is_bounded=False))
        except InvalidArgumentError as error:
            raise bad_request(str(error), request.messages_field) from None

    async def stream(
        self, request: ChatRequest, *, choice: int = 0, prompt: EncodedPrompt | None = None, counts: bool = False
    ) -> AsyncGenerator[ChatEvent, None]:
        """An answer's events, `Finished` last. Closing the generator ends the answer at the next pass.

        Args:
            request: checked.
            choice: number of the answer among several to the request; each has a seed of its own.
            prompt: of the request, where it is known already.
            counts: every event has the usage so far.

        Raises:
            ApiError: the request cannot be answered.
            SpecdecError: see `Batch.submit`.
        """
        asked_s = time.perf_counter()
        if prompt is None:
            prompt = await self.prompt(request)
        seed = seed_of_choice(request.options.get("seed", 0), choice)
        encoded = prompt
        reader, options = await self._answers.work(lambda: self._formed(request, encoded))
        events = answer_events(
            self._answers,
            prompt,
            reader,
            options={**options, "seed": seed},
            owner=request.owner,
            deadline_s=request.deadline_s,
            asked_s=asked_s,
            patient=choice > 0,
            counts=counts,
        )
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        except GrammarError as error:
            raise _of_request(error, request) from None

    def _formed(self, request: ChatRequest, prompt: EncodedPrompt) -> tuple[ChatReader, dict[str, Any]]:
        """What reads the answer, and the options under which it has the form that the request asks for."""
        options = dict(request.options)
        tokenizer = self._answers.model.tokenizer
        describe = describer(tokenizer)
        if self._form is None or tokenizer is None:
            return ChatReader(describe), options
        end = tokenizer.decode(prompt.ids[-_END_TOKENS:], continues=True)
        options |= self._form.options(request, end)
        return FormReader(self._form.parser(request, end), tokenizer.detokenizer().control, describe), options

    def _encoded(self, request: ChatRequest, *, is_bounded: bool = True) -> EncodedPrompt:
        model = self._answers.model
        variables: dict[str, Any] = dict(request.options.get("chat_template_kwargs") or {})
        variables |= {
            "add_generation_prompt": request.begin_answer and not request.continue_final,
            "continue_final_message": request.continue_final,
        }
        messages: Sequence[Mapping[str, Any]] = checked_messages(request.messages)
        if self._form is not None:
            messages, more = self._form.prompt(replace(request, messages=messages))
            variables |= more
        return encode_prompt(messages, model.tokenizer, model.config, variables=variables, is_bounded=is_bounded)


def _of_request(error: GrammarError, request: ChatRequest) -> GrammarError:
    """The error, about the field from which the grammar was made."""
    field = error.option
    if field == "response_format":
        field = request.schema_field
    elif request.options.get(field) is None:
        field = request.schema_field if request.tool_choice == "auto" or not request.tools else "tools"
    return GrammarError(field, error.problem, keywords=error.keywords)
