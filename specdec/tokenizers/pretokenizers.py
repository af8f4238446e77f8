"""Byte-level BPE from a bare vocabulary: the named rules by which models cut text before merging.

A GGUF file names its rule in `tokenizer.ggml.pre`. The regular expressions are those of the models' own
tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from specdec.errors import ModelFormatError

DEFAULT = "gpt2"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one family of models prepares text.

    Attributes:
        pattern: what stays together, or None for GPT-2's own pattern.
        single_digits: every digit stands alone, before the pattern is applied.
        compose: text is brought into Unicode NFC first.
        whole_words: a word that is in the vocabulary is one token, whatever the merges say.
        add_bos: the family wants its first token added when the file does not say.
    """

    pattern: str | None = None
    single_digits: bool = False
    compose: bool = False
    whole_words: bool = False
    add_bos: bool = False


RULES = {
    "gpt2": Rule(),
    "gpt-2": Rule(),
    "smollm": Rule(single_digits=True),
    "qwen2": Rule(_WORDS % r"\p{N}", compose=True),
    "llama-bpe": Rule(_WORDS % r"\p{N}{1,3}", whole_words=True, add_bos=True),
}


def rule(name: str) -> Rule:
    """The rule of this name.

    Raises:
        ModelFormatError: unknown; the message lists those that exist.
    """
    if name not in RULES:
        raise ModelFormatError(f"unknown pre-tokenizer {name!r}: this version knows {', '.join(RULES)}")
    return RULES[name]


def build_byte_level(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    rule: Rule,
    special: Sequence[str] = (),
    user_defined: Sequence[str] = (),
) -> Tokenizer:
    """A tokenizer of the tokenizers library.

    Args:
        vocabulary: token, in the byte-level alphabet, to id.
        merges: pairs of tokens, first merged first.
        rule: how text is prepared.
        special: tokens of `vocabulary` that steer the model.
        user_defined: other tokens of `vocabulary` that are found in text before anything else.

    Raises:
        ModelFormatError: a merge makes a token that is not in the vocabulary.
    """
    try:
        tokenizer = Tokenizer(BPE(vocabulary, list(merges), ignore_merges=rule.whole_words))
    except Exception as error:  # the library raises bare Exception
        raise ModelFormatError(f"vocabulary and merges do not fit: {' '.join(str(error).split())}") from None
    if rule.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in user_defined])
    return tokenizer


def _pre_tokenizer(rule: Rule) -> pre_tokenizers.PreTokenizer:
    if rule.pattern is not None:
        split = pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule.single_digits:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level
