"""Tokenizers of others, as mlx-lm takes them beside its own: Hugging Face's, or mlx-lm's wrapper of one."""

from __future__ import annotations

from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.mlx_lm.detokenizer import NaiveStreamingDetokenizer, StreamingDetokenizer
from specdec.mlx_lm.tokenizer_utils import TokenizerWrapper
from specdec.tokenizers.base import Tokenizer


class _Foreign:
    """Hugging Face's tokenizer with what an answer needs beside it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_token: str | None = getattr(tokenizer, "bos_token", None)
        end = getattr(tokenizer, "eos_token_id", None)
        self.eos_token_ids = set() if end is None else {end}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids."""
        return str(self._tokenizer.decode(token_ids))

    @property
    def detokenizer(self) -> StreamingDetokenizer:
        """A fresh decoder of tokens that come one by one."""
        return NaiveStreamingDetokenizer(self._tokenizer)


def wrapped(tokenizer: Any) -> Any:
    """A tokenizer with `encode`, `decode`, `detokenizer`, `bos_token` and `eos_token_ids`.

    Raises:
        InvalidArgumentError: it is not a tokenizer.
    """
    if isinstance(tokenizer, TokenizerWrapper) or all(
        hasattr(tokenizer, name) for name in ("detokenizer", "eos_token_ids", "encode")
    ):
        return tokenizer
    if isinstance(tokenizer, Tokenizer):
        return TokenizerWrapper(tokenizer)
    if callable(getattr(tokenizer, "encode", None)) and callable(getattr(tokenizer, "decode", None)):
        return _Foreign(tokenizer)
    raise InvalidArgumentError(f"tokenizer must be the one that load returned, not {type(tokenizer).__name__}")
