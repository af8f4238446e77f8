"""A server whose answers are written down beforehand: everything but the model is real."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from http_server import Running, serving
from text_model import text_store

import specdec
from specdec.engine.prompt import EncodedPrompt
from specdec.server.chat_service import ChatService
from specdec.server.events import ChatEvent, ChatRequest, Finished, Usage


@dataclass
class Script:
    """What the next requests are answered with.

    Attributes:
        events: of each answer, by its number; the last one answers all further requests.
        error: raised after the events instead of ending.
        wait_s: before each event.
        requests: those that have come.
        closed: answers that were left before their end.
    """

    events: list[list[ChatEvent]] = field(default_factory=list)
    error: Exception | None = None
    wait_s: float = 0.0
    requests: list[ChatRequest] = field(default_factory=list)
    closed: int = 0

    def set(self, *events: ChatEvent, error: Exception | None = None, wait_s: float = 0.0) -> None:
        """One answer to all further requests."""
        self.events, self.error, self.wait_s = [list(events)], error, wait_s
        self.requests.clear()

    @property
    def request(self) -> ChatRequest:
        """The last one."""
        return self.requests[-1]


class ScriptedChat(ChatService):
    """Renders prompts, and answers by the script."""

    script: Script

    async def stream(
        self, request: ChatRequest, *, choice: int = 0, prompt: EncodedPrompt | None = None, counts: bool = False
    ) -> AsyncGenerator[ChatEvent, None]:
        script = self.script
        script.requests.append(request)
        events = script.events.pop(0) if len(script.events) > 1 else script.events[0]
        try:
            for event in events:
                if script.wait_s:
                    await asyncio.sleep(script.wait_s)
                yield event
            if script.error is not None:
                raise script.error
        except (GeneratorExit, asyncio.CancelledError):
            script.closed += 1
            raise


@dataclass(frozen=True)
class Scripted:
    """A running server and its script."""

    running: Running
    script: Script

    @property
    def url(self) -> str:
        return self.running.url

    def post(self, path: str, body: Any, **options: Any) -> Any:
        return self.running.post(path, body, **options)


@contextlib.contextmanager
def scripted(folder: Path, **settings: Any) -> Iterator[Scripted]:
    """A server of a tiny model that answers by a script; `settings` are those of `serving`."""
    store = text_store(folder, max_context=4096)
    with serving(specdec.load(store, runtime="reference"), **settings) as running:
        site = running.server._site
        chat = ScriptedChat(site.answers, site.settings)
        chat.script = Script()
        object.__setattr__(site, "chat", chat)
        yield Scripted(running, chat.script)


def finished(reason: str = "stop", usage: Usage | None = None, **more: Any) -> Finished:
    """The end of an answer."""
    return Finished(reason, usage or Usage(30, 7, cached_tokens=10, reasoning_tokens=2), **more)
