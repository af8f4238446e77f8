"""`POST /v1/completions`, by OpenAI's documents: texts or token ids go on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request

from specdec.engine.prompt import EncodedPrompt, encode_prompt
from specdec.server.answer_events import answer_events
from specdec.server.chat_format import chunk_usage
from specdec.server.chat_reader import ChatReader
from specdec.server.choices import together
from specdec.server.completion_format import CompletionFrame
from specdec.server.completion_request import CompletionRequest, read_completion
from specdec.server.connection import EventStream, begun, event_bytes, json_response, unless_gone, with_errors
from specdec.server.echo import Echo
from specdec.server.events import ChatEvent, Finished
from specdec.server.logprobs import describer
from specdec.server.sampling import seed_of_choice
from specdec.server.site import Site, site_of


async def completions(request: Request) -> Any:
    """Continue texts."""
    site = site_of(request)
    body = await site.body(request)
    asked = read_completion(body, site.model.config, site.settings, owner=site.owner(request))
    prompts = [await site.answers.encode(partial(_encoded, site, prompt), param="prompt") for prompt in asked.prompts]
    frame = CompletionFrame(asked)
    events = _events(site, asked, prompts)
    if asked.stream:
        return EventStream(with_errors(_chunks(frame, asked, await begun(request, events))))
    return json_response(await unless_gone(request.receive, _whole(frame, events)))


async def _events(
    site: Site, asked: CompletionRequest, prompts: list[EncodedPrompt]
) -> AsyncGenerator[tuple[int, ChatEvent], None]:
    """Events of all choices; the choices of one prompt have consecutive numbers."""
    asked_s = time.perf_counter()
    describe = describer(site.model.tokenizer)
    streams = []
    for number in range(len(prompts) * asked.choices):
        place, choice = divmod(number, asked.choices)
        streams.append(
            answer_events(
                site.answers,
                prompts[place],
                ChatReader(describe),
                options={**asked.options, "seed": seed_of_choice(asked.options["seed"], choice)},
                owner=asked.owner,
                deadline_s=asked.deadline_s,
                asked_s=asked_s,
                echo=_echo(site, asked, asked.prompts[place], prompts[place]) if asked.echo else None,
                patient=number > 0,
                counts=asked.continuous_usage,
            )
        )
    async with aclosing(together(streams, most=site.answers.most)) as events:
        async for event in events:
            yield event


def _echo(site: Site, asked: CompletionRequest, given: str | list[int], prompt: EncodedPrompt) -> Echo:
    """A prompt's own text."""
    tokenizer = site.model.tokenizer
    if isinstance(given, list):
        given = "" if tokenizer is None else tokenizer.decode(prompt.ids)
    return Echo(given, prompt.ids, tokenizer, has_logprobs=asked.logprobs is not None)


def _encoded(site: Site, prompt: str | list[int]) -> EncodedPrompt:
    """A prompt in tokens. An empty text is what begins one."""
    tokenizer = site.model.tokenizer
    if prompt == "" and tokenizer is not None and tokenizer.bos_id is not None:
        prompt = [tokenizer.bos_id]
    return encode_prompt(prompt, tokenizer, site.model.config, chat=False)


async def _chunks(
    frame: CompletionFrame, asked: CompletionRequest, events: AsyncGenerator[tuple[int, ChatEvent], None]
) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream."""
    finished: dict[int, Finished] = {}
    async with aclosing(events):
        async for number, event in events:
            usage = chunk_usage(event, include=asked.include_usage, continuous=asked.continuous_usage)
            yield event_bytes(frame.chunk_of(number, event) | usage)
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
