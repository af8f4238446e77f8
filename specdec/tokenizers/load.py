"""Opens the tokenizer folder of a store."""

from __future__ import annotations

from pathlib import Path

from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.parse import foreign
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.tokenizers.base import Tokenizer
from specdec.tokenizers.bpe import BPETokenizer
from specdec.tokenizers.meta import KINDS, META_NAME, TokenizerMeta
from specdec.tokenizers.sentencepiece import SentencePieceTokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds a tokenizer; a model without one takes and gives token ids only."""
    return (folder / META_NAME).exists()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`.

    Raises:
        ModelFormatError: there is none, or it is damaged.
    """
    if not has_tokenizer(folder):
        raise ModelFormatError("this model has no tokenizer: give token ids instead of text")
    with foreign("the tokenizer"):
        return _load(folder)


def _load(folder: Path) -> Tokenizer:
    meta = TokenizerMeta.from_bytes(_read(folder / META_NAME))
    content = _read(folder / KINDS[meta.kind])
    if meta.kind == "bpe":
        return BPETokenizer(meta, content)
    return SentencePieceTokenizer(meta, content)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, most_bytes=MOST_TEXT_BYTES)
    except unless_signalled(OSError) as error:
        raise ModelFormatError(f"cannot read the tokenizer file {path}: {error.strerror}") from None
