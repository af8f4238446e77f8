"""What the grammars of a model's answers share: its vocabulary as llguidance reads it, and compiled grammars."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specdec.engine.constraint import GrammarConstraint
from specdec.engine.grammar import Grammar, check_installed, compiled
from specdec.errors import InvalidArgumentError, OptionError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from specdec.tokenizers import Tokenizer

_KEPT = 32  # compiled grammars of a model
_MOST_BYTES = 512  # of a text that must follow, as far as it is spelled: a grammar may force megabytes
_UNSURE = 8  # tokens at a cut that the rest of the text might have made others


@dataclass(slots=True)
class Grammars:
    """What the grammars of a model's answers share. It may be used from any thread.

    Attributes:
        tables: of the model's vocabulary, once needed.
        compiled: matchers at their beginnings, by grammar, the least recently used first.
    """

    tables: _Tables | None = None
    compiled: OrderedDict[Grammar, LLMatcher] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def constraint(
        self, grammar: Grammar, tokenizer: Tokenizer | None, vocab_size: int, *, continues: bool
    ) -> GrammarConstraint:
        """A constraint for one answer.

        Args:
            grammar: what was asked for.
            tokenizer: of the model.
            vocab_size: V.
            continues: the answer continues with the text of the prompt.

        Raises:
            GrammarError: the grammar has a mistake, cannot be met, or needs what is not supported.
            OptionError: the model has no tokenizer, or llguidance is not installed.
        """
        if tokenizer is None:
            raise OptionError(grammar.option, "needs the text of the tokens, and this model has no tokenizer")
        check_installed(grammar.option)
        with self.lock:
            if self.tables is None:
                self.tables = _Tables.of(tokenizer, vocab_size)
            tables, matcher = self.tables, self.compiled.get(grammar)
        if matcher is None:
            matcher = compiled(grammar, tables.tokenizer)
        with self.lock:
            self.compiled[grammar] = matcher
            self.compiled.move_to_end(grammar)
            while len(self.compiled) > _KEPT:
                self.compiled.popitem(last=False)
        return GrammarConstraint(
            matcher.deep_copy(),
            option=grammar.option,
            vocab_size=vocab_size,
            not_first=None if continues else tables.spaced,
            has_end=tables.has_end,
        )


@dataclass(frozen=True, slots=True)
class _Tables:
    """A vocabulary as llguidance reads it.

    Attributes:
        tokenizer: the vocabulary.
        spaced: ids whose text begins with a space, where the first space of an answer is not shown; else None.
        has_end: whether a token of the model ends an answer.
    """

    tokenizer: LLTokenizer
    spaced: NDArray[np.intp] | None
    has_end: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> _Tables:
        """The tables of a tokenizer whose model has `vocab_size` tokens."""
        from llguidance import LLTokenizer, TokenizerWrapper

        pieces = [*tokenizer.pieces[:vocab_size]]
        pieces += [b""] * (vocab_size - len(pieces))
        special = sorted(token for token in tokenizer.special_ids if token < vocab_size)
        ends = sorted(token for token in tokenizer.eos_ids if token < vocab_size)
        # llguidance needs a token that ends a text: where the model has none, one that it can never choose.
        vocabulary = _Vocabulary(tokenizer, [*pieces, b"<end>"], [*special, vocab_size], ends or [vocab_size])
        spaced = [token for token, piece in enumerate(pieces) if piece.startswith(b" ")]
        return cls(
            LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.ends),
            np.array(spaced, np.intp) if tokenizer.strips_first_space else None,
            bool(ends),
        )


class _Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of every token, and the usual tokens of a text."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], special: list[int], ends: list[int]) -> None:
        self.tokens, self.special_token_ids, self.ends = pieces, special, ends
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_id
        self._tokenizer = tokenizer
        self._special = frozenset(special)
        self._ids = {piece: token for token, piece in enumerate(pieces) if piece and token not in self._special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """The ids of a piece of text, as it would be in the middle of one. Their bytes are exactly those of `text`, or
        of its beginning, where it is long."""
        if len(text) > _MOST_BYTES:
            start = text[:_MOST_BYTES].decode("utf-8", errors="ignore").encode("utf-8")
            return self(start or text[:_MOST_BYTES])[:-_UNSURE]
        try:
            ids = self._tokenizer.encode(text.decode("utf-8"), add_bos=False)
        except (UnicodeDecodeError, InvalidArgumentError):
            ids = []
        joined = b"".join(self.tokens[token] for token in ids if token < len(self.tokens))
        if joined != text and joined == b" " + text and self.tokens[ids[0]] == b" ":
            return ids[1:]
        return ids if joined == text and not self._special.intersection(ids) else self._longest_ids(text)

    def _longest_ids(self, text: bytes) -> list[int]:
        """The longest token that the text begins with, and so on; bytes that no token begins with end it."""
        ids: list[int] = []
        while text:
            lengths = range(min(self._longest, len(text)), 0, -1)
            length = next((length for length in lengths if text[:length] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[text[:length]])
            text = text[length:]
        return ids
