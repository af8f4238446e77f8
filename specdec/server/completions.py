"""`POST /v1/completions`, by OpenAI's documents: texts or token ids go on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from specdec.engine.prompt import EncodedPrompt, encode_prompt
from specdec.errors import InvalidArgumentError
from specdec.server.answer_events import answer_events
from specdec.server.chat_reader import ChatReader, EchoReader
from specdec.server.choices import together
from specdec.server.completion_format import CompletionFrame
from specdec.server.completion_request import CompletionRequest, read_completion
from specdec.server.connection import EventStream, begun, event_bytes, json_response, unless_gone, with_errors
from specdec.server.errors import bad_request
from specdec.server.events import ChatEvent, Finished
from specdec.server.sampling import seed_of_choice
from specdec.server.site import Site, site_of


async def completions(request: Request) -> Any:
    """Continue texts."""
    site = site_of(request)
    body = await site.body(request)
    asked = read_completion(body, site.model.config, site.settings, owner=site.owner(request))
    prompts = await site.answers.work(lambda: [_encoded(site, prompt) for prompt in asked.prompts])
    frame = CompletionFrame(asked)
    events = _events(site, asked, prompts)
    if asked.stream:
        return EventStream(with_errors(_chunks(frame, asked, await begun(request, events))))
    return json_response(await unless_gone(request.receive, _whole(frame, events)))


async def _events(
    site: Site, asked: CompletionRequest, prompts: list[EncodedPrompt]
) -> AsyncGenerator[tuple[int, ChatEvent], None]:
    """Events of all choices, those of one prompt side by side in their numbers."""
    asked_s = time.perf_counter()
    streams = []
    for number in range(len(prompts) * asked.choices):
        options = {**asked.options, "seed": seed_of_choice(asked.options["seed"], number % asked.choices)}
        if asked.max_tokens is not None:
            options["max_tokens"] = asked.max_tokens or 1  # the one of an empty answer is not shown
        streams.append(
            answer_events(
                site.answers,
                prompts[number // asked.choices],
                _reader(site, asked, number // asked.choices, prompts),
                options=options,
                owner=asked.owner,
                deadline_s=asked.deadline_s,
                asked_s=asked_s,
            )
        )
    async with aclosing(together(streams, most=site.answers.most)) as events:
        async for event in events:
            yield event


def _reader(site: Site, asked: CompletionRequest, number: int, prompts: list[EncodedPrompt]) -> ChatReader:
    """What reads an answer to prompt `number`."""
    if not asked.echo:
        return ChatReader()
    prompt, tokenizer = asked.prompts[number], site.model.tokenizer
    if isinstance(prompt, list):
        prompt = "" if tokenizer is None else tokenizer.decode(prompts[number].ids)
    return EchoReader(prompt, has_answer=asked.max_tokens != 0)


def _encoded(site: Site, prompt: str | list[int]) -> EncodedPrompt:
    """A prompt in tokens. An empty text is what begins one.

    Raises:
        ApiError: it is empty, or leaves no room for an answer.
    """
    tokenizer = site.model.tokenizer
    given: Any = prompt
    if prompt == "" and tokenizer is not None and tokenizer.bos_id is not None:
        given = [tokenizer.bos_id]
    try:
        encoded = encode_prompt(given, tokenizer, site.model.config, chat=False)
    except InvalidArgumentError as error:
        raise bad_request(str(error), "prompt") from None
    site.answers.check_fits(encoded, "prompt")
    return encoded


async def _chunks(
    frame: CompletionFrame, asked: CompletionRequest, events: AsyncGenerator[tuple[int, ChatEvent], None]
) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream."""
    finished: dict[int, Finished] = {}
    more: dict[str, Any] = {"usage": None} if asked.include_usage else {}
    async with aclosing(events):
        async for number, event in events:
            yield event_bytes(frame.chunk_of(number, event) | more)
            if isinstance(event, Finished):
                finished[number] = event
    if asked.include_usage:
        yield event_bytes(frame.usage_chunk(finished))


async def _whole(frame: CompletionFrame, events: AsyncGenerator[tuple[int, ChatEvent], None]) -> dict[str, Any]:
    answers: dict[int, list[ChatEvent]] = {}
    async with aclosing(events):
        async for number, event in events:
            answers.setdefault(number, []).append(event)
    return frame.whole(answers)
