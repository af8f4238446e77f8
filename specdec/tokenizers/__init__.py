"""Tokenizers: text to token ids and back, chat templates, and text piece by piece while tokens arrive."""

from specdec.tokenizers.base import Tokenizer
from specdec.tokenizers.detokenizer import IncrementalDetokenizer
from specdec.tokenizers.load import has_tokenizer, load_tokenizer

__all__ = ["IncrementalDetokenizer", "Tokenizer", "has_tokenizer", "load_tokenizer"]
