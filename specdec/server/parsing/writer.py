"""The events of an answer, built as it comes: `EventWriter`; and `TextStage`, for answers that are nothing but text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdec.server.events import (
    ChatEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    TokenOrigin,
    ToolArgumentsDelta,
    ToolCallStart,
)
from specdec.server.parsing.pieces import Piece

_Delta = type[TextDelta] | type[ReasoningDelta] | type[ToolArgumentsDelta]
_Extras = tuple[Sequence[TokenLogprob], Sequence[TokenOrigin]]


class EventWriter:
    """Joins pieces of one kind into one event, and keeps log-probabilities and origins with the text of their tokens.

    Args:
        new_id: makes the id of a tool call.

    Attributes:
        tokens: tokens that were announced.
        calls: tool calls that have begun.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._events: list[ChatEvent] = []
        self._kind: _Delta | None = None  # of the event that is being built, from the next three
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._origins: list[TokenOrigin] = []
        self._extras: dict[int, _Extras] = {}  # by token, of those whose text is still to come
        self.tokens = 0
        self.calls = 0

    def token(self, logprobs: Sequence[TokenLogprob] = (), origins: Sequence[TokenOrigin] = ()) -> int:
        """Announce the next token and return its number."""
        if logprobs or origins:
            self._extras[self.tokens] = (logprobs, origins)
        self.tokens += 1
        return self.tokens - 1

    def text(self, text: str, token: int) -> None:
        """Characters of the answer, which came with a token."""
        self._add(TextDelta, text)
        self._add_extras(token)

    def reasoning(self, text: str, token: int) -> None:
        """Characters of the model's reasoning."""
        self._add(ReasoningDelta, text)
        self._add_extras(token)

    def skip(self, pieces: Sequence[Piece]) -> None:
        """Pieces that are not shown; neither are the log-probabilities of their tokens."""
        if self._extras and pieces:
            last = max(piece.token for piece in pieces)
            self._extras = {token: extras for token, extras in self._extras.items() if token > last}

    def start_call(self, name: str) -> None:
        """A tool call begins."""
        self._flush()
        self._events.append(ToolCallStart(self.calls, self._new_id(), name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if text:
            self._add(ToolArgumentsDelta, text)

    def take(self) -> list[ChatEvent]:
        """The events since the last time."""
        self._flush()
        events, self._events = self._events, []
        return events

    def _add(self, kind: _Delta, text: str) -> None:
        if self._kind is not kind:
            self._flush()
            self._kind = kind
        self._texts.append(text)

    def _add_extras(self, token: int) -> None:
        """What belongs to `token`, and to those before it that had no text of their own."""
        if self._extras:
            for number in [one for one in self._extras if one <= token]:
                logprobs, origins = self._extras.pop(number)
                self._logprobs += logprobs
                self._origins += origins

    def _flush(self) -> None:
        text = "".join(self._texts)
        if self._kind is ToolArgumentsDelta:
            self._events.append(ToolArgumentsDelta(self.calls - 1, text))
        elif self._kind is not None:
            kind = TextDelta if self._kind is TextDelta else ReasoningDelta
            self._events.append(kind(text, tuple(self._logprobs), tuple(self._origins)))
        self._kind = None
        self._texts, self._logprobs, self._origins = [], [], []


class TextStage:
    """Takes the whole answer for text.

    Args:
        writer: gets it.
    """

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer

    def push(self, piece: Piece) -> None:
        """Take the next piece of the answer."""
        if not piece.is_control:
            self._writer.text(piece.text, piece.token)

    def push_text(self, text: str, token: int) -> None:
        """Take the next characters."""
        self._writer.text(text, token)

    def end(self) -> None:
        """The answer is complete."""
