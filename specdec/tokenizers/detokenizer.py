"""Text while tokens arrive: complete characters as soon as they are complete, and never half of one."""

from __future__ import annotations

import codecs

from specdec.tokenizers.pieces import PieceTable


class IncrementalDetokenizer:
    """Turns tokens into text one at a time, in time proportional to the token's own bytes.

    All that `add` returned plus what `finish` returns equals `Tokenizer.decode(ids, skip_special=True)`.

    Args:
        table: the vocabulary.
        continues: text comes before the first token, so that its leading space stays.
    """

    def __init__(self, table: PieceTable, *, continues: bool = False) -> None:
        self._table = table
        self._begun = b""  # bytes of a character that is not complete yet
        self._strip = table.strip_leading_space and not continues

    def add(self, token: int) -> str:
        """Text that `token` completes: empty for special tokens and inside a character.

        Raises:
            InvalidArgumentError: the id is negative.
        """
        piece = self._table.piece(token)
        if token in self._table.special:
            return ""
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        piece = self._begun + piece
        text, used = codecs.utf_8_decode(piece, "replace", False)
        self._begun = piece[used:]
        return text

    def control(self, token: int) -> str:
        """The name of a control token, for which `add` returns nothing; empty for any other token."""
        is_control = token in self._table.special
        return self._table.piece(token).decode("utf-8", errors="replace") if is_control else ""

    def finish(self) -> str:
        """U+FFFD for a character that was begun and never ended, else nothing. To be called once, at the end."""
        return codecs.utf_8_decode(self._begun, "replace", True)[0]
