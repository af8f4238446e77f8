"""Encoding texts that are longer than any prompt: `encode_long`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.tokenizers.tokenizer_limits import MOST_TEXT_BYTES

if TYPE_CHECKING:
    from specdec.tokenizers.base import Tokenizer

_PART_CHARS = MOST_TEXT_BYTES // 4  # a character has up to 4 bytes


def encode_long(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text of any length, without a token that begins it. One of more than 2 million characters is cut,
    at ends of lines where there are any, and no token reaches over a cut.

    Raises:
        InvalidArgumentError: the text holds half a surrogate pair.
    """
    ids: list[int] = []
    start = 0
    while start < len(text):
        stop = start + _PART_CHARS
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        ids += tokenizer.encode(text[start:stop], add_bos=False)
        start = stop
    return ids
