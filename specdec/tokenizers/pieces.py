"""What every token id stands for, in bytes. Decoding is joining them; how text becomes ids lives elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from specdec.errors import InvalidArgumentError

WORD_START = "\u2581"  # how sentencepiece writes a space


@dataclass(frozen=True, slots=True)
class PieceTable:
    """The vocabulary as bytes.

    Attributes:
        pieces: bytes of each id; empty for ids that mean nothing.
        special: ids that steer the model and are not text, such as the end of a turn.
        strip_leading_space: encoding puts a space before the text, so the first piece loses one when decoded.
    """

    pieces: tuple[bytes, ...]
    special: frozenset[int]
    strip_leading_space: bool

    def piece(self, token: int) -> bytes:
        """Bytes of one token; empty for an id beyond the vocabulary (models pad their tables).

        Raises:
            InvalidArgumentError: the id is negative.
        """
        if token < 0:
            raise InvalidArgumentError(f"token ids are not negative, unlike {token}")
        return self.pieces[token] if token < len(self.pieces) else b""

    def join(self, tokens: Sequence[int], *, skip_special: bool, continues: bool) -> bytes:
        """Bytes of a sequence; `continues` when text comes before it, so that its first space stays."""
        strip, parts = self.strip_leading_space and not continues, []
        for token in tokens:
            special = token in self.special
            if special and skip_special:
                continue
            piece = self.piece(token)
            if strip and piece and not special:
                piece, strip = piece.removeprefix(b" "), False
            parts.append(piece)
        return b"".join(parts)

    def fingerprint(self) -> str:
        """sha256 in hexadecimal over every id that means something, and what it means."""
        digest = hashlib.sha256()
        for token, piece in enumerate(self.pieces):
            if piece:
                digest.update(b"%d %d " % (token, len(piece)) + piece)
        return digest.hexdigest()


def byte_of_character() -> dict[str, int]:
    """The printable character by which byte-level BPE writes each byte (GPT-2, Radford et al. 2019).

    Bytes that print as themselves in Latin-1 stand for themselves; the others, in order, take the characters from
    U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def byte_level_piece(token: str, alphabet: dict[str, int]) -> bytes:
    """Bytes of a byte-level token; one with a character outside the alphabet stands for itself."""
    try:
        return bytes(map(alphabet.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


def byte_fallback_piece(token: str) -> bytes:
    """Bytes of a sentencepiece-style token: `<0x0A>` is one byte, U+2581 a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(WORD_START, " ").encode("utf-8")
