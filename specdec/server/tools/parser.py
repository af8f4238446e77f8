"""Tool calls in an answer, found while it arrives: `ToolCallParser`."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from specdec.server.events import ChatEvent, TokenLogprob, TokenOrigin
from specdec.server.parsing.cursor import CallError, Cursor, EndError, Reading
from specdec.server.parsing.pieces import Piece, Search, push_each, text_of
from specdec.server.parsing.writer import EventWriter
from specdec.server.tools.calls import Calls, ToolSet

Reader: TypeAlias = Callable[[Cursor, Calls], Reading[None]]
"""Reads what follows a marker that begins calls."""

_ALPHABET = string.ascii_letters + string.digits


def new_call_id() -> str:
    """An id for a tool call, as OpenAI's."""
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


class ToolCallParser:
    """Takes tool calls out of an answer.

    Everything else is text, white space next to a call left out. A call counts from where its name is known and its
    arguments have begun; until then it is held back, and becomes text if it is malformed. Of a call that is malformed
    later, what was JSON stays arguments, and the rest is text.

    Args:
        readers: by the marker after which each reads.
        tools: the functions that there are.
        bare: reads calls that begin, without a marker, with the answer's first character.
        parallel: False takes the first call only and ignores what follows it.
        whole: hold every call back until it is complete, so that a malformed one is text as a whole.
        new_id: makes ids of calls.
        writer: gets the events; None makes one for `feed`.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        tools: ToolSet,
        *,
        bare: Reader | None = None,
        parallel: bool = True,
        whole: bool = False,
        new_id: Callable[[], str] = new_call_id,
        writer: EventWriter | None = None,
    ) -> None:
        self._readers, self._bare, self._parallel = readers, bare, parallel
        self._writer = writer or EventWriter(new_id)
        self._calls = Calls(self._writer, tools, whole=whole)
        self._search = Search(readers)
        self._reading: Reading[None] | None = None
        self._cursor = Cursor()
        self._raw: list[Piece] = []  # of the calls that are being read, since the last complete one
        self._marked = 0  # pieces of the marker among them
        self._is_first = True  # no text has come yet

    @property
    def calls(self) -> int:
        """Tool calls so far, an incomplete one included."""
        return self._writer.calls

    @property
    def is_full(self) -> bool:
        """Nothing that follows counts: there is the one call that may be."""
        return not self._parallel and self._calls.completed > 0

    def feed(
        self,
        text: str,
        control: str = "",
        *,
        logprobs: Sequence[TokenLogprob] = (),
        origins: Sequence[TokenOrigin] = (),
    ) -> list[ChatEvent]:
        """The events that a token brings.

        Args:
            text: of the token; may be empty.
            control: name of the control token that the token is, which comes after the text.
            logprobs: handed on with the token's text.
            origins: likewise.
        """
        token = self._writer.token(logprobs, origins)
        self.push_text(text, token)
        if control:
            self.push(Piece(control, token, is_control=True))
        return self._writer.take()

    def finish(self) -> list[ChatEvent]:
        """The last events, at the end of the answer."""
        self.end()
        return self._writer.take()

    def push(self, piece: Piece) -> None:
        """Take a piece of the answer; what it brings goes to the writer."""
        todo = [piece]
        while todo and not self.is_full:
            one = todo.pop()
            todo += reversed(self._find(one) if self._reading is None else self._read(one))

    def push_text(self, text: str, token: int) -> None:
        """Take the next characters, all of one token."""
        is_plain = self._reading is None and not self._is_first and self._search.passes(text)
        if is_plain and not self.is_full:
            self._writer.text(text, token)
        else:
            push_each(self, text, token)

    def end(self) -> None:
        """The answer is complete; the last of it goes to the writer."""
        while self._reading is not None and not self.is_full:
            for piece in self._read(None):
                self.push(piece)
        self._show(self._search.finish(), is_last=True)

    def _find(self, piece: Piece) -> list[Piece]:
        """Look for the beginning of calls; returns pieces to look at next."""
        if self._is_first and self._bare is not None and piece.text in ("{", "["):
            self._begin(self._bare, self._search.finish())
            return [piece]
        released, marker = self._search.push(piece)
        self._show(released)
        if marker is not None:
            self._begin(self._readers[marker], self._search.matched)
        return []

    def _begin(self, reader: Reader, marker: Sequence[Piece]) -> None:
        self._is_first = False
        self._raw, self._marked = list(marker), len(marker)
        self._cursor = Cursor()
        self._reading = reader(self._cursor, self._calls)
        next(self._reading)

    def _read(self, piece: Piece | None) -> list[Piece]:
        """Go on reading calls; returns pieces that turned out not to belong to them."""
        assert self._reading is not None
        settled = self._calls.settled
        if piece is not None:
            self._raw.append(piece)
        try:
            self._reading.send(piece)
        except StopIteration:
            return self._leave(self._cursor.rest())
        except EndError:
            if self._calls.is_open:
                self._calls.flush()
                return self._leave([])
            is_between = self._calls.completed > 0 and not text_of(self._raw).strip()
            return self._leave([]) if is_between else self._give_up()
        except CallError:
            return self._leave(self._cursor.rest()) if self._calls.is_written else self._give_up()
        if self._calls.settled > settled:
            self._forget()
        elif self._calls.is_written:
            self._writer.skip(self._raw[-1:])
        return []

    def _leave(self, rest: list[Piece]) -> list[Piece]:
        """Stop reading calls; all but `rest` belonged to them."""
        self._writer.skip(self._raw[: len(self._raw) - len(rest)])
        self._calls.drop()
        self._reading = None
        return rest

    def _give_up(self) -> list[Piece]:
        """Treat everything since the last complete call as text, in which calls may still begin."""
        raw = self._raw
        count = self._marked or 1
        if self._calls.is_open:  # held back as a whole; only its last piece may begin something else
            count = len(raw) - 1
        self._calls.drop()
        self._reading = None
        self._show(raw[:count])
        return raw[count:]

    def _forget(self) -> None:
        self._writer.skip(self._raw)
        self._raw, self._marked = [], 0

    def _show(self, pieces: Sequence[Piece], *, is_last: bool = False) -> None:
        if is_last and self.calls and all(piece.text.isspace() for piece in pieces):
            return
        for piece in pieces:
            self._is_first = False
            if not piece.is_control:
                self._writer.text(piece.text, piece.token)
