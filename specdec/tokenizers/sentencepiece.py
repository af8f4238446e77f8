"""Tokenizers in sentencepiece's tokenizer.model format (Kudo and Richardson, 1808.06226)."""

from __future__ import annotations

import re

from sentencepiece import SentencePieceProcessor

from specdec.errors import ModelFormatError
from specdec.tokenizers.base import Tokenizer
from specdec.tokenizers.meta import SENTENCEPIECE_NAME, TokenizerMeta
from specdec.tokenizers.pieces import WORD_START, PieceTable, byte_fallback_piece


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer.model, and the tokens that were added beside it.

    sentencepiece finds user-defined symbols in text but no control tokens, so the text is cut at these first. Each part
    between them is encoded by itself, with the space that the model puts before a text.

    Args:
        meta: what the file does not say.
        content: the tokenizer.model.

    Raises:
        ModelFormatError: the file is damaged.
    """

    def __init__(self, meta: TokenizerMeta, content: bytes) -> None:
        self._model = read_model(content)
        table = _table(self._model, meta)
        controls = [i for i in range(self._model.vocab_size()) if _is_control(self._model, i)]
        self._ids = {self._model.id_to_piece(i): i for i in controls}
        self._ids |= {token.text: token.id for token in meta.added_tokens}
        # Longest first: of two tokens that begin alike the longer one is meant.
        names = sorted(filter(None, self._ids), key=lambda name: (-len(name), name))
        self._splitter = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        super().__init__(meta, table)

    def _encode(self, text: str) -> list[int]:
        # With one group in the pattern, the odd parts are the separators.
        parts = self._splitter.split(text) if self._splitter else [text]
        ids: list[int] = []
        for position, part in enumerate(parts):
            if position % 2:
                ids.append(self._ids[part])
            elif part:
                ids += self._model.encode(part)
        return ids


def read_model(content: bytes) -> SentencePieceProcessor:
    """sentencepiece's object.

    Raises:
        ModelFormatError: the content is no sentencepiece model, or marks words at their end.
    """
    try:
        if not content:  # the library takes this for "no model yet"
            raise ValueError("it is empty")
        model = SentencePieceProcessor(model_proto=content)
        normalized = model.normalize("a")
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelFormatError(f"{SENTENCEPIECE_NAME} is not a sentencepiece model: {reason}") from None
    if normalized.endswith(WORD_START):
        raise ModelFormatError(f"{SENTENCEPIECE_NAME} puts spaces after words, which is not supported")
    return model


def _is_control(model: SentencePieceProcessor, token: int) -> bool:
    return bool(model.is_control(token) or model.is_unknown(token))


def _table(model: SentencePieceProcessor, meta: TokenizerMeta) -> PieceTable:
    size = max([model.vocab_size(), *(token.id + 1 for token in meta.added_tokens)])
    pieces, special = [b""] * size, set()
    for token in range(model.vocab_size()):
        text = model.id_to_piece(token)
        if _is_control(model, token):
            special.add(token)
            pieces[token] = text.encode("utf-8")
        elif model.is_byte(token):
            pieces[token] = byte_fallback_piece(text)
        elif not model.is_unused(token):
            pieces[token] = text.replace(WORD_START, " ").encode("utf-8")
    for added in meta.added_tokens:
        pieces[added.id] = added.text.encode("utf-8")
        if added.special:
            special.add(added.id)
    return PieceTable(tuple(pieces), frozenset(special), model.normalize("a").startswith(WORD_START))
