"""Text while tokens come one by one, as mlx-lm gives it: with the names of special tokens in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tokenizers import decoders

from specdec.tokenizers.base import Tokenizer


class StreamingDetokenizer(ABC):
    """Turns tokens into text.

    Attributes:
        tokens: added so far.
        text: of them, as far as it is certain.
        offset: characters of it that `last_segment` has given.
    """

    text: str
    tokens: list[int]
    offset: int

    @abstractmethod
    def reset(self) -> None:
        """Start over."""

    @abstractmethod
    def add_token(self, token: int) -> None:
        """Take a token."""

    @abstractmethod
    def finalize(self) -> None:
        """Give what was held back: no token follows."""

    @property
    def last_segment(self) -> str:
        """Text that has come since this was last read."""
        segment = self.text[self.offset :]
        self.offset = len(self.text)
        return segment


class TokenDetokenizer(StreamingDetokenizer):
    """For the tokenizers of this project, in time proportional to the tokens' own bytes.

    A space that a text begins with is left out, as mlx-lm does for byte-level vocabularies and those of sentencepiece
    that put one before a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "_backend", None)
        is_byte_level = backend is not None and isinstance(backend.decoder, decoders.ByteLevel)
        self._strips = is_byte_level or tokenizer.strips_first_space
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self.text, self.tokens, self.offset = "", [], 0
        self._decoder = self._tokenizer.detokenizer(continues=True)

    def add_token(self, token: int) -> None:
        """Take a token."""
        self.tokens.append(token)
        self._add(self._decoder.add(token) + self._decoder.control(token))

    def finalize(self) -> None:
        """Give the mark for a character that was begun and never ended."""
        self._add(self._decoder.finish())
        self._decoder = self._tokenizer.detokenizer(continues=True)

    def _add(self, text: str) -> None:
        if self._strips and not self.text:
            text = text.removeprefix(" ")
        self.text += text


class NaiveStreamingDetokenizer(StreamingDetokenizer):
    """For any tokenizer that can decode: a line is decoded again for every token of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self.text, self.tokens, self.offset = "", [], 0
        self._done = ""  # text of finished lines
        self._line: list[int] = []

    def add_token(self, token: int) -> None:
        """Take a token."""
        self.tokens.append(token)
        self._line.append(token)
        text = str(self._tokenizer.decode(self._line))
        self.text = self._done + text.rstrip("\ufffd")
        if text.endswith("\n"):
            self._done, self._line = self.text, []

    def finalize(self) -> None:
        """Give what is left, half characters included."""
        if self._line:
            self.text = self._done + str(self._tokenizer.decode(self._line))
            self._done, self._line = self.text, []
