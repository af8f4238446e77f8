"""From the pieces of an answer to the events of a chat: `ChatReader`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from specdec.engine.result import Piece, Result
from specdec.server.answer_parser import AnswerParser
from specdec.server.events import (
    ChatEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    TokenOrigin,
    ToolArgumentsDelta,
    ToolCallStart,
)
from specdec.server.logprobs import Describe

VERIFIER = "verifier"


class ChatReader:
    """Reads text out of an answer's pieces. Each token's data goes out with its text.

    Args:
        describe: adds text and bytes to a token's log-probability.

    Attributes:
        has_called: the answer holds a tool call.
        reasoning_tokens: tokens of the reasoning.
    """

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is still to come
        self._origins: list[TokenOrigin] = []
        self.has_called = False
        self.reasoning_tokens = 0

    def read(self, piece: Piece) -> list[ChatEvent]:
        """Events that a piece makes."""
        events: list[ChatEvent] = []
        for index, part in enumerate(piece.parts):
            logprobs, origins = self._told(piece, index)
            self._logprobs += logprobs
            self._origins += origins
            events += self._with_tokens([TextDelta(part)] if part else [])
        if not piece.parts and piece.text:  # was held back until the answer's time was over
            events += self._with_tokens([TextDelta(piece.text)])
        return merged(events)

    def finish(self, result: Result) -> list[ChatEvent]:
        """Events of what was held back until the answer's end. The token that ended it is not part of the answer."""
        if result.stopped_by == "end token":
            del self._logprobs[-1:], self._origins[-1:]
        return self._with_tokens([TextDelta("")]) if self._logprobs or self._origins else []

    def _told(self, piece: Piece, index: int) -> tuple[list[TokenLogprob], list[TokenOrigin]]:
        """The log-probabilities to report for a token of a piece."""
        origins = [TokenOrigin(piece.parts[index], piece.origins[index].drafter or VERIFIER)]
        return [self._describe(found) for found in piece.logprobs[index : index + 1]], origins

    def _with_tokens(self, events: Iterable[ChatEvent]) -> list[ChatEvent]:
        """The events, the first text among them with the data of all tokens since the last one."""
        found: list[ChatEvent] = []
        for event in events:
            if isinstance(event, (TextDelta, ReasoningDelta)):
                event = replace(event, logprobs=tuple(self._logprobs), origins=tuple(self._origins))
                self._logprobs, self._origins = [], []
            elif isinstance(event, ToolCallStart):
                self.has_called = True
                self._logprobs, self._origins = [], []
            found.append(event)
        return found


class FormReader(ChatReader):
    """Reads an answer in which the model may mark reasoning and tool calls.

    Args:
        parser: of the answer.
        control: the name of a control token, "" for any other token.
        describe: adds text and bytes to a token's log-probability.
    """

    def __init__(self, parser: AnswerParser, control: Callable[[int], str], describe: Describe) -> None:
        super().__init__(describe)
        self._parser, self._control = parser, control

    def read(self, piece: Piece) -> list[ChatEvent]:
        """Events that a piece makes."""
        events: list[ChatEvent] = []
        for index, (token, part) in enumerate(zip(piece.tokens, piece.parts, strict=True)):
            logprobs, origins = self._told(piece, index)
            events += self._parser.feed(part, self._control(token), logprobs=logprobs, origins=origins)
        if not piece.parts and piece.text:
            events += self._parser.feed(piece.text)
        return self._counted(events)

    def finish(self, result: Result) -> list[ChatEvent]:  # noqa: ARG002
        """Events of what was held back until the answer's end."""
        return self._counted(self._parser.finish())

    def _counted(self, events: list[ChatEvent]) -> list[ChatEvent]:
        self.has_called = self._parser.calls > 0
        self.reasoning_tokens = self._parser.reasoning_tokens
        return merged(events)


def merged(events: Iterable[ChatEvent]) -> list[ChatEvent]:
    """The events with neighbours of one kind made one."""
    found: list[ChatEvent] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, (TextDelta, ReasoningDelta)) and type(last) is type(event):
            assert isinstance(last, (TextDelta, ReasoningDelta))
            found[-1] = type(event)(
                last.text + event.text, last.logprobs + event.logprobs, last.origins + event.origins
            )
        elif isinstance(event, ToolArgumentsDelta) and isinstance(last, ToolArgumentsDelta):
            found[-1] = ToolArgumentsDelta(last.index, last.text + event.text)
        else:
            found.append(event)
    return found
