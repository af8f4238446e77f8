"""Tokenizers in sentencepiece's tokenizer.model format (Kudo and Richardson, 1808.06226)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

from sentencepiece import SentencePieceProcessor

from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.tokenizers.base import Tokenizer
from specdec.tokenizers.markup import Part
from specdec.tokenizers.meta import MOST_TOKENS, SENTENCEPIECE_NAME, TokenizerMeta
from specdec.tokenizers.pieces import WORD_START, PieceTable, byte_fallback_piece
from specdec.tokenizers.sentencepiece_model import keeps_text, without_dummy_prefix
from specdec.tokenizers.tokenizer_limits import check_added


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer.model, and the tokens that were added beside it.

    sentencepiece finds user-defined symbols in text but no control tokens, so the text is cut at these first. Each part
    between them is encoded by itself, with the space that the model puts before a text or that `TokenizerMeta.prefix`
    asks for.

    Args:
        meta: what the file does not say.
        content: the tokenizer.model.

    Raises:
        ModelFormatError: the file is damaged.
    """

    def __init__(self, meta: TokenizerMeta, content: bytes) -> None:
        self._model = read_model(content)
        if self._model.vocab_size() > MOST_TOKENS:
            raise ModelFormatError(
                f"{SENTENCEPIECE_NAME} has {self._model.vocab_size()} tokens: at most {MOST_TOKENS} are read"
            )
        self._content, self._prefix = content, meta.prefix
        table, controls = _table(self._model, meta)
        self._ids = {self._model.id_to_piece(i): i for i in controls}
        self._ids |= {token.text: token.id for token in meta.added_tokens}
        check_added(list(self._ids), SENTENCEPIECE_NAME)
        self._splitter = _splitter(self._ids, meta)
        strips = any(token.strip_left or token.strip_right for token in meta.added_tokens)
        self._covers = keeps_text(content) and not strips
        super().__init__(meta, table, [token.text for token in meta.added_tokens if not token.special])

    def _covered(self, text: str) -> bytes:
        return text.replace(WORD_START, " ").encode("utf-8") if self._covers else b""

    def _encode(self, text: str) -> list[int]:
        return self._encode_parts([Part(text, False)])

    def _encode_parts(self, parts: Sequence[Part]) -> list[int]:
        ids: list[int] = []
        text, is_literal = "", False
        for found, literal in self._found(parts):
            if isinstance(found, str):
                text, is_literal = text + found, is_literal or literal
                continue
            ids += [*self._encode_text(text, is_first=not ids, is_literal=is_literal), found]
            text, is_literal = "", False
        return ids + self._encode_text(text, is_first=not ids, is_literal=is_literal)

    def _found(self, parts: Sequence[Part]) -> Iterator[tuple[str | int, bool]]:
        """Text, with whether names of tokens in it are text, and ids of the tokens between."""
        for part in parts:
            if part.is_literal or self._splitter is None:
                yield part.text, part.is_literal
                continue
            # With one group in the pattern, the odd pieces are the separators.
            for position, piece in enumerate(self._splitter.split(part.text)):
                if position % 2:
                    yield self._ids[piece if piece in self._ids else piece.strip()], False
                else:
                    yield piece, False

    def _encode_text(self, text: str, *, is_first: bool, is_literal: bool) -> list[int]:
        """Ids of a text without control tokens; `is_first` when no token comes before it."""
        if not text:
            return []
        if self._prefix == "model":
            ids: list[int] = self._model.encode(text)
        else:
            wants_space = self._prefix == "always" or (self._prefix == "first" and is_first)
            # As in Hugging Face's tokenizers, a text that begins with a space gets none before it.
            begins = text.startswith((" ", WORD_START))
            ids = self._bare.encode(WORD_START + text if wants_space and not begins else text)
        if not is_literal or not self._table.special.intersection(ids):
            return ids
        # A symbol that sentencepiece itself finds in text: cut in two, it is not there to be found.
        pattern = re.compile("|".join(f"(?<={re.escape(name[0])}){re.escape(name[1:])}" for name in self.control_names))
        cuts = [0, *(found.start() for found in pattern.finditer(text) if found[0]), len(text)]
        first, *others = (text[start:stop] for start, stop in pairwise(cuts))
        ids = self._encode_text(first, is_first=is_first, is_literal=False)
        for other in others:
            ids += self._bare.encode(other)
        return ids

    @cached_property
    def _bare(self) -> SentencePieceProcessor:
        """The model without a space of its own before a text."""
        return SentencePieceProcessor(model_proto=without_dummy_prefix(self._content))


def read_model(content: bytes) -> SentencePieceProcessor:
    """sentencepiece's object.

    Raises:
        ModelFormatError: the content is not a sentencepiece model, or marks words at their end.
    """
    try:
        if not content:  # the library takes this for "no model yet"
            raise ValueError("it is empty")
        model = SentencePieceProcessor(model_proto=content)
        normalized = model.normalize("a")
    except unless_signalled(RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelFormatError(f"{SENTENCEPIECE_NAME} is not a sentencepiece model: {reason}") from None
    if normalized.endswith(WORD_START):
        raise ModelFormatError(f"{SENTENCEPIECE_NAME} puts spaces after words, which is not supported")
    return model


def _splitter(ids: dict[str, int], meta: TokenizerMeta) -> re.Pattern[str] | None:
    """A pattern with one group that finds the tokens `ids` in text."""
    left = {token.text for token in meta.added_tokens if token.strip_left}
    right = {token.text for token in meta.added_tokens if token.strip_right}
    # Longest first: of two tokens that begin alike the longer one is meant.
    names = sorted(filter(None, ids), key=lambda name: (-len(name), name))
    found = [(r"\s*" if name in left else "") + re.escape(name) + (r"\s*" if name in right else "") for name in names]
    return re.compile("(" + "|".join(found) + ")") if found else None


def _is_control(model: SentencePieceProcessor, token: int) -> bool:
    return bool(model.is_control(token) or model.is_unknown(token))


def _table(model: SentencePieceProcessor, meta: TokenizerMeta) -> tuple[PieceTable, list[int]]:
    """The vocabulary, and the control tokens in it that are the model's own."""
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
    controls = sorted(special)
    for added in meta.added_tokens:
        pieces[added.id] = added.text.encode("utf-8")
        if added.special:
            special.add(added.id)
    strips = model.normalize("a").startswith(WORD_START) if meta.prefix == "model" else meta.prefix != "never"
    return PieceTable(tuple(pieces), frozenset(special), strips), controls
