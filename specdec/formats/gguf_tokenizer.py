"""The tokenizer inside a GGUF file, as the files of a tokenizer folder.

What a file leaves out or says wrongly is resolved as llama.cpp resolves it, or with a warning where that is a guess.
"""

from __future__ import annotations

import re
from typing import Any

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.tokenizers.markers import AMBIGUOUS, CONTROL_MARKERS, END_MARKERS, MARKER, end_tokens
from specdec.tokenizers.meta import BPE_NAME, META_NAME, MOST_TOKENS, SENTENCEPIECE_NAME, AddedToken, TokenizerMeta
from specdec.tokenizers.pieces import WORD_START
from specdec.tokenizers.pretokenizers import DEFAULT, build_byte_level, rule
from specdec.tokenizers.sentencepiece import read_model
from specdec.tokenizers.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    build_model,
)
from specdec.warn import warn

_PREFIX = "tokenizer.ggml."
_MODEL, _TOKENS, _MERGES = _PREFIX + "model", _PREFIX + "tokens", _PREFIX + "merges"
_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_TOKENS = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator",
    "mask_token": "mask",
}  # fmt: skip
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Ends of an answer that a file can name by their ids.
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# What the format says of a sentencepiece vocabulary when the file names no ids.
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
# Control tokens of Phi-3 that leave the spaces after them.
_PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")
# The same of byte-level vocabularies: the end of Falcon's, which counts only where it is a control token.
_BPE_IDS = {"bos": 11, "eos": 11}


def tokenizer_files(fields: Fields, *, vocab_size: int) -> dict[str, bytes]:
    """Files of the tokenizer folder, from a GGUF file's metadata; none when it has no tokenizer.

    Args:
        fields: the metadata.
        vocab_size: rows of the embedding table.

    Raises:
        ModelFormatError: an unknown kind of tokenizer, or one that contradicts itself.

    Warns:
        UserWarning: metadata is missing or senseless; the message says what holds instead.
    """
    if _MODEL not in fields or fields.text(_MODEL) in ("none", "no_vocab"):
        return {}
    kind = fields.text(_MODEL)
    if kind not in ("gpt2", "llama"):
        raise ModelFormatError(f"{fields.where}: unknown tokenizer {kind!r}: this version reads gpt2 (BPE) and llama")
    vocabulary = _Vocabulary(fields, vocab_size, is_bpe=kind == "gpt2")
    if kind == "gpt2":
        name, content, add_bos = BPE_NAME, *_byte_level(fields, vocabulary)
    else:
        name, content, add_bos = SENTENCEPIECE_NAME, _sentencepiece(fields, vocabulary), True
    bos_id, eos_ids = vocabulary.special_id("bos"), _eos_ids(vocabulary)
    add_bos = fields.flag(_PREFIX + "add_bos_token", add_bos) and bos_id is not None
    meta = TokenizerMeta(
        kind="bpe" if kind == "gpt2" else "sentencepiece",
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=add_bos,
        chat_template=_chat_template(fields, warn=True),
        special_tokens={
            name: vocabulary.tokens[index]
            for name, key in _TEMPLATE_TOKENS.items()
            if (index := vocabulary.special_id(key)) is not None
        },
        chat_bos=add_bos,
        added_tokens=tuple(
            AddedToken(index, vocabulary.tokens[index], True, strip_right=True)
            for index in (_strips_right(fields, vocabulary) if kind == "llama" else ())
        ),
    )
    if not eos_ids:
        _warn(fields, "names no token that ends an answer: answers end at max_tokens or a stop string")
    return {name: content, META_NAME: meta.to_bytes()}


class _Vocabulary:
    """Text and type of every token, and the ids that the file names.

    Attributes:
        tokens: text by id.
        types: type by id; tokens that are never ordinary text are control tokens, whatever the file says.
    """

    def __init__(self, fields: Fields, vocab_size: int, *, is_bpe: bool) -> None:
        self.fields = fields
        tokens = _typed(fields, _TOKENS, str)
        if len(tokens) > MOST_TOKENS:
            raise ModelFormatError(f"{fields.where}: {len(tokens)} tokens, and at most {MOST_TOKENS} are read")
        types = _typed(fields, _PREFIX + "token_type", int)[: len(tokens)]
        # A file with types may mean that such a token is text; one whose template writes it does not.
        template = _chat_template(fields) or ""
        control = {text for text in CONTROL_MARKERS if not types or text not in AMBIGUOUS or text in template}
        types = types or [NORMAL] * len(tokens)
        if not tokens or len(types) != len(tokens):
            raise ModelFormatError(f"{fields.where}: {_TOKENS} and token_type must have one entry a token")
        if len(tokens) > vocab_size:
            raise ModelFormatError(f"{fields.where}: {len(tokens)} tokens, but only {vocab_size} rows of embeddings")
        self.tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(tokens)]
        self.types = [
            CONTROL if text in control else _type(text, kind, is_bpe) for text, kind in zip(tokens, types, strict=True)
        ]
        self._ids: dict[str, int | None] = {}
        for name, default in (_BPE_IDS if is_bpe else _SENTENCEPIECE_IDS).items():
            holds = default < len(tokens) and (not is_bpe or self.types[default] == CONTROL)
            self._ids[name] = self._named(name, default if holds else None)
        for index in map(self.special_id, ("bos", *_ENDS)):
            if index is not None and self.types[index] in (NORMAL, UNUSED) and MARKER.fullmatch(self.tokens[index]):
                self.types[index] = CONTROL

    def special_id(self, name: str) -> int | None:
        """The id that the file or else the format names, or None."""
        if name not in self._ids:
            self._ids[name] = self._named(name, None)
        return self._ids[name]

    def _named(self, name: str, default: int | None) -> int | None:
        key = f"{_PREFIX}{name}_token_id"
        if key not in self.fields:
            return default
        index = self.fields.integer(key)
        if 0 <= index < len(self.tokens):
            return index
        instead = "it is left out" if default is None else f"{default} holds"
        _warn(self.fields, f"{key} is {index}, but the vocabulary has {len(self.tokens)} tokens: {instead}")
        return default


def _type(text: str, kind: int, is_bpe: bool) -> int:
    """A token's type: the file's, if it makes sense, but for single bytes."""
    if not text:
        return UNUSED
    if not is_bpe and kind == NORMAL and _BYTE.fullmatch(text):
        return BYTE
    return kind if NORMAL <= kind <= BYTE else NORMAL


def _typed(fields: Fields, key: str, *kinds: type) -> list[Any]:
    values = fields.array(key)
    if not all(type(value) in kinds for value in values):
        raise ModelFormatError(f"{fields.where}: {key} must hold values of type {kinds[0].__name__} only")
    return values


def _byte_level(fields: Fields, vocabulary: _Vocabulary) -> tuple[bytes, bool]:
    """A tokenizer.json, and whether its family wants a first token."""
    if _PREFIX + "pre" not in fields:
        _warn(fields, f"{_PREFIX}pre is missing: text is cut by a default rule, and answers may be worse for it")
    chosen = rule(fields.text(_PREFIX + "pre", DEFAULT))
    tokens, types = vocabulary.tokens, vocabulary.types
    # Tokens that fill up the vocabulary are left out: they mean nothing, and so they decode to nothing.
    ids = {text: index for index, text in enumerate(tokens) if types[index] != UNUSED}
    if len(ids) != len(tokens) - types.count(UNUSED):
        raise ModelFormatError(f"{fields.where}: {_TOKENS} names a token twice")
    tokenizer = build_byte_level(
        ids,
        _merges(fields),
        rule=chosen,
        special=[tokens[i] for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)],
        user_defined=[tokens[i] for i, kind in enumerate(types) if kind == USER_DEFINED],
        strip_right=[tokens[i] for i in _strips_right(fields, vocabulary)],
    )
    return tokenizer.to_str().encode("utf-8"), chosen.add_bos


def _merges(fields: Fields) -> list[tuple[str, str]]:
    if not fields.array(_MERGES):
        raise ModelFormatError(
            f"{fields.where} has no {_MERGES}, so text cannot become tokens: its conversion failed, get another file"
        )
    merges = []
    for merge in _typed(fields, _MERGES, str):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise ModelFormatError(f"{fields.where}: {_MERGES} has {merge!r}, which is not a pair")
        merges.append((left, right))
    return merges


def _sentencepiece(fields: Fields, vocabulary: _Vocabulary) -> bytes:
    """A tokenizer.model that sentencepiece accepts."""
    tokens, types = vocabulary.tokens, list(vocabulary.types)
    scores = _typed(fields, _PREFIX + "scores", float, int)[: len(tokens)]
    if not scores:
        _warn(fields, f"{_PREFIX}scores is missing: all tokens count alike, and answers may be worse for it")
        scores = [0.0] * len(tokens)
    if len(scores) != len(tokens):
        raise ModelFormatError(f"{fields.where}: {_PREFIX}scores must have one entry a token")
    # sentencepiece needs exactly one; files that lost the type, or have others, still say which it is.
    unknown = vocabulary.special_id("unknown") or 0
    if types.count(UNKNOWN) != 1:
        types = [CONTROL if kind == UNKNOWN else kind for kind in types]
        types[unknown] = UNKNOWN
    content = build_model(
        _escaped(tokens, types),
        [float(score) for score in scores],
        types,
        add_dummy_prefix=fields.flag(_PREFIX + "add_space_prefix", True),
        remove_extra_whitespaces=fields.flag(_PREFIX + "remove_extra_whitespaces", False),
    )
    try:
        read_model(content)
    except ModelFormatError as error:
        raise ModelFormatError(f"{fields.where}: its vocabulary makes no sentencepiece model: {error}") from None
    return content


def _escaped(tokens: list[str], types: list[int]) -> list[str]:
    """Texts of tokens as a sentencepiece model has them. Converters write the spaces of a token that is found in text
    as spaces, and the model looks for it in a text whose spaces are escaped."""
    known, found = set(tokens), []
    for text, kind in zip(tokens, types, strict=True):
        escaped = text.replace(" ", WORD_START) if kind == USER_DEFINED else text
        found.append(text if escaped in known else escaped)
    return found


def _strips_right(fields: Fields, vocabulary: _Vocabulary) -> list[int]:
    """Tokens that take the spaces after them: files do not say it, and in those of Phi-3 all control tokens do but for
    a few."""
    if fields.text("general.architecture", "") != "phi3":
        return []
    return [
        index
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if (kind == CONTROL and text not in _PHI3_KEEPS) or text == "</s>"
    ]


def _eos_ids(vocabulary: _Vocabulary) -> tuple[int, ...]:
    ids = {text: index for index, text in enumerate(vocabulary.tokens) if text in END_MARKERS}
    named = {index for index in map(vocabulary.special_id, _ENDS) if index is not None}
    return tuple(sorted(end_tokens(ids) | named))


def _chat_template(fields: Fields, *, warn: bool = False) -> str | None:
    value = fields.values.get(_TEMPLATE)
    if value is None or isinstance(value, str):
        return value
    if warn:
        _warn(fields, f"{_TEMPLATE} is not text: the model is used without a chat template")
    return None


def _warn(fields: Fields, what: str) -> None:
    warn(f"{fields.where}: {what}")
