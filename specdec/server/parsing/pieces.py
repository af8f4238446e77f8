"""What parsers of answers read: `Piece`, one character or control token; and `Search`, which finds markers in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

_MOST_SPACE = 64  # characters of white space held back; a longer run is text


class Piece(NamedTuple):
    """A part of an answer that is not divided any further.

    Attributes:
        text: one character, or the name of a control token.
        token: number of the token, from 0, that it came with.
        is_control: whether it is a control token, which is never shown.
    """

    text: str
    token: int
    is_control: bool = False


class Stage(Protocol):
    """A parser, or a part of one: it is given an answer and writes events."""

    def push(self, piece: Piece) -> None:
        """Take the next piece of the answer."""

    def push_text(self, text: str, token: int) -> None:
        """Take the next characters, all of one token."""

    def end(self) -> None:
        """The answer is complete."""


def push_each(stage: Stage, text: str, token: int) -> None:
    """Give characters to a stage one by one."""
    for character in text:
        stage.push(Piece(character, token))


class Search:
    """Finds markers in pieces that arrive one at a time, and holds back what may turn out to be the start of one.

    A marker is written in characters or is a control token of that name. White space before a marker belongs to it.

    Args:
        markers: none of which is the beginning of another one.

    Attributes:
        matched: the pieces of the marker that was found last, and of the white space before it.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = tuple(markers)
        self._starts = frozenset(marker[0] for marker in self._markers)
        self._longest = _MOST_SPACE + max(map(len, self._markers), default=0)
        self._held: list[Piece] = []
        self.matched: list[Piece] = []

    def push(self, piece: Piece) -> tuple[list[Piece], str | None]:
        """The pieces that are text, and the marker that ends with `piece`, if one does.

        Control tokens that are not markers are left out.
        """
        if piece.is_control:
            if piece.text not in self._markers:
                return [], None
            self._held.append(piece)
            return self._take(len(text_of(self._held).rstrip())), piece.text
        if not self._held and piece.text not in self._starts and not piece.text.isspace():
            return [piece], None
        self._held.append(piece)
        text = text_of(self._held)
        for start in range(len(text)):
            begun = text[start:].lstrip()
            if begun in self._markers:
                return self._take(start), begun
            if len(text) - start <= self._longest and any(marker.startswith(begun) for marker in self._markers):
                released, self._held = self._held[:start], self._held[start:]
                return released, None
        return self.finish(), None

    def passes(self, text: str) -> bool:
        """Whether a text that comes next holds no marker and no beginning of one, so that it need not be pushed."""
        return not self._held and text != "" and not text[-1].isspace() and self._starts.isdisjoint(text)

    def finish(self) -> list[Piece]:
        """The pieces that were held back; nothing is held any longer."""
        held, self._held = self._held, []
        return held

    def _take(self, count: int) -> list[Piece]:
        """The first `count` of the pieces that were held back; the others are the match."""
        held = self.finish()
        self.matched = held[count:]
        return held[:count]


def text_of(pieces: Sequence[Piece]) -> str:
    """The text of pieces, control tokens left out."""
    return "".join(piece.text for piece in pieces if not piece.is_control)
