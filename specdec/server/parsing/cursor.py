"""Reading pieces that arrive one at a time, as if they were all there: generators that wait for the next one."""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from typing import TypeAlias, TypeVar

from specdec.server.parsing.pieces import Piece, text_of

T = TypeVar("T")
Reading: TypeAlias = Generator[None, Piece | None, T]
"""Is sent the pieces one by one, and None at the end of the answer; returns what it read."""

SPACE = " \t\r\n"
_MOST_WORD = 4096  # characters up to a marker that has to come


class CallError(Exception):
    """The text that was read is not a tool call."""


class EndError(CallError):
    """The answer ends inside a tool call."""


class Cursor:
    """The place of a reader in the pieces; a piece that was read too far is put back."""

    def __init__(self) -> None:
        self._back: list[Piece] = []

    def next(self) -> Reading[Piece]:
        """The next piece.

        Raises:
            EndError: there is none.
        """
        if self._back:
            return self._back.pop()
        piece = yield
        if piece is None:
            raise EndError
        return piece

    def back(self, *pieces: Piece) -> None:
        """Put pieces back, in their order; the first is the next."""
        self._back += reversed(pieces)

    def rest(self) -> list[Piece]:
        """The pieces that were put back and are no longer part of what is read."""
        rest, self._back = self._back[::-1], []
        return rest

    def after_space(self, more: Container[str] = ()) -> Reading[Piece]:
        """The next piece that is neither white space nor among `more`."""
        while True:
            piece = yield from self.next()
            if piece.is_control or (piece.text not in SPACE and piece.text not in more):
                return piece

    def peek(self) -> Reading[Piece]:
        """The next piece that is not white space, which stays the next one."""
        piece = yield from self.after_space()
        self.back(piece)
        return piece

    def has(self, marker: str, *, spaced: bool = False) -> Reading[bool]:
        """Whether `marker` comes next, in characters or as a control token; if so it is read, else nothing is.

        Args:
            marker: text or name.
            spaced: there may be white space before it.
        """
        space: list[Piece] = []
        read: list[Piece] = []
        try:
            while not _is(marker, read):
                piece = yield from self.next()
                if spaced and not read and not piece.is_control and piece.text in SPACE:
                    space.append(piece)
                    continue
                read.append(piece)
                if not _begins(marker, read):
                    self.back(*space, *read)
                    return False
        except EndError:
            self.back(*space, *read)
            raise
        return True

    def until(self, markers: Sequence[str]) -> Reading[tuple[str, str]]:
        """The text up to the first of the markers, and that marker.

        Raises:
            CallError: none comes within 4096 characters, or another control token comes first.
        """
        text = ""
        while len(text) < _MOST_WORD:
            piece = yield from self.next()
            if piece.is_control:
                if piece.text in markers:
                    return text, piece.text
                raise CallError
            text += piece.text
            for marker in markers:
                if text.endswith(marker):
                    return text.removesuffix(marker), marker
        raise CallError


def _is(marker: str, read: Sequence[Piece]) -> bool:
    return bool(read) and (read[0].text == marker if read[0].is_control else text_of(read) == marker)


def _begins(marker: str, read: Sequence[Piece]) -> bool:
    if any(piece.is_control for piece in read):
        return _is(marker, read) and len(read) == 1
    return marker.startswith(text_of(read))
