"""A vocabulary with words of JSON, so that one text has many spellings, and a model without weights that uses it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from fake_runtime import BOS, EOS, ByteDetokenizer, ByteTokenizer, FakeRuntime, fake_config

from specdec.model.loaded import Model

WORDS = (
    b'{"', b'":', b'": ', b'", "', b'"}', b'": "', b"true", b"false", b"null", b", ", b"}}", b"[]", b"{}", b"]}", b"12",
    b"name", b"na", b"me", b'name"', b"ab", b"ab", b"abc", b" a", b" ", b"\n  ", b"\xc3\xa9", b"", b'"a"',
    b"age", b"-1",
)  # fmt: skip
VOCAB = 258 + len(WORDS)
# Structure is likelier than letters, or answers of random numbers would never come to an end.
ENDING = {ord(c): 4.0 for c in '"}],:0123456789'} | {258 + n: 3.0 for n in range(len(WORDS))}


class WordDetokenizer(ByteDetokenizer):
    """Joins the bytes of words."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(b"" if token in (BOS, EOS) else WordTokenizer.pieces[token])


class WordTokenizer(ByteTokenizer):
    """Tokens are bytes, beginning, end, and `WORDS`; a text is spelled with the longest words that fit."""

    pieces = (*ByteTokenizer.pieces, *WORDS)
    vocab_size = VOCAB
    fingerprint = "words"

    def encode(self, text: str, *, add_bos: bool | None = None, fit: object = None) -> list[int]:
        data, ids = text.encode(), []
        while data:
            fitting = [one for one in range(258, VOCAB) if self.pieces[one] and data.startswith(self.pieces[one])]
            ids.append(max(fitting, key=lambda one: len(self.pieces[one]), default=data[0]))
            data = data[len(self.pieces[ids[-1]]) :]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False, continues: bool = False) -> str:
        return b"".join(b"" if one in (BOS, EOS) else self.pieces[one] for one in ids).decode(errors="replace")

    def detokenizer(self, *, continues: bool = False) -> WordDetokenizer:
        return WordDetokenizer()


def word_model(*, eos: frozenset[int] | None = None, **options: Any) -> Model:
    """A model on the fake runtime with words; options are those of `FakeRuntime`."""
    return Model(FakeRuntime(fake_config(vocab_size=VOCAB), **options), WordTokenizer(eos=eos))  # type: ignore[arg-type]
