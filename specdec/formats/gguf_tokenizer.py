"""The tokenizer inside a GGUF file, as the files of a tokenizer folder."""

from __future__ import annotations

from typing import Any

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.tokenizers.meta import BPE_NAME, END_MARKERS, META_NAME, SENTENCEPIECE_NAME, TokenizerMeta
from specdec.tokenizers.pretokenizers import DEFAULT, build_byte_level, rule
from specdec.tokenizers.sentencepiece import read_model
from specdec.tokenizers.sentencepiece_model import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, build_model

_MODEL = "tokenizer.ggml.model"
_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_files(fields: Fields, *, vocab_size: int) -> dict[str, bytes]:
    """Files of the tokenizer folder, from a GGUF file's metadata; none when it has no tokenizer.

    Args:
        fields: the metadata.
        vocab_size: rows of the embedding table.

    Raises:
        ModelFormatError: an unknown kind of tokenizer, or one that contradicts itself.
    """
    if _MODEL not in fields or fields.text(_MODEL) in ("none", "no_vocab"):
        return {}
    tokens, types = _vocabulary(fields, vocab_size)
    kind = fields.text(_MODEL)
    if kind == "gpt2":
        name, content, add_bos = BPE_NAME, *_byte_level(fields, tokens, types)
    elif kind == "llama":
        name, content, add_bos = SENTENCEPIECE_NAME, _sentencepiece(fields, tokens, types), True
    else:
        raise ModelFormatError(f"{fields.where}: unknown tokenizer {kind!r}: this version reads gpt2 (BPE) and llama")
    bos_id = _special_id(fields, "bos", len(tokens))
    meta = TokenizerMeta(
        kind="bpe" if kind == "gpt2" else "sentencepiece",
        bos_id=bos_id,
        eos_ids=_eos_ids(fields, tokens, types),
        add_bos=fields.flag("tokenizer.ggml.add_bos_token", add_bos) and bos_id is not None,
        chat_template=fields.text(_TEMPLATE) if _TEMPLATE in fields else None,
        special_tokens={
            name: tokens[index]
            for name, key in _TEMPLATE_TOKENS.items()
            if (index := _special_id(fields, key, len(tokens))) is not None
        },
    )
    return {name: content, META_NAME: meta.to_bytes()}


def _vocabulary(fields: Fields, vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of every token."""
    tokens = _typed(fields, "tokenizer.ggml.tokens", str)
    types = _typed(fields, "tokenizer.ggml.token_type", int) or [NORMAL] * len(tokens)
    if not tokens or len(types) != len(tokens):
        raise ModelFormatError(f"{fields.where}: tokenizer.ggml.tokens and token_type must have one entry a token")
    if len(tokens) > vocab_size:
        raise ModelFormatError(f"{fields.where}: {len(tokens)} tokens, but only {vocab_size} rows of embeddings")
    return tokens, types


def _typed(fields: Fields, key: str, kind: type) -> list[Any]:
    values = fields.array(key)
    if not all(type(value) is kind for value in values):
        raise ModelFormatError(f"{fields.where}: {key} must hold values of type {kind.__name__} only")
    return values


def _byte_level(fields: Fields, tokens: list[str], types: list[int]) -> tuple[bytes, bool]:
    """A tokenizer.json, and whether its family wants a first token."""
    chosen = rule(fields.text("tokenizer.ggml.pre", DEFAULT))
    # Tokens that fill up the vocabulary are left out: they mean nothing, and so they decode to nothing.
    vocabulary = {text: index for index, text in enumerate(tokens) if types[index] != UNUSED}
    if len(vocabulary) != len(tokens) - types.count(UNUSED):
        raise ModelFormatError(f"{fields.where}: tokenizer.ggml.tokens names a token twice")
    merges = []
    for merge in _typed(fields, "tokenizer.ggml.merges", str):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise ModelFormatError(f"{fields.where}: tokenizer.ggml.merges has {merge!r}, which is no pair")
        merges.append((left, right))
    tokenizer = build_byte_level(
        vocabulary,
        merges,
        rule=chosen,
        special=[tokens[i] for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)],
        user_defined=[tokens[i] for i, kind in enumerate(types) if kind == USER_DEFINED],
    )
    return tokenizer.to_str().encode("utf-8"), chosen.add_bos


def _sentencepiece(fields: Fields, tokens: list[str], types: list[int]) -> bytes:
    """A tokenizer.model that sentencepiece accepts."""
    scores = _typed(fields, "tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise ModelFormatError(f"{fields.where}: tokenizer.ggml.scores must have one entry a token")
    if UNKNOWN not in types:
        # sentencepiece needs one; files that lost the type still say which it is.
        types = list(types)
        types[_special_id(fields, "unknown", len(tokens)) or 0] = UNKNOWN
    content = build_model(
        tokens,
        scores,
        types,
        add_dummy_prefix=fields.flag("tokenizer.ggml.add_space_prefix", True),
        remove_extra_whitespaces=fields.flag("tokenizer.ggml.remove_extra_whitespaces", False),
    )
    try:
        read_model(content)
    except ModelFormatError as error:
        raise ModelFormatError(f"{fields.where}: its vocabulary makes no sentencepiece model: {error}") from None
    return content


def _special_id(fields: Fields, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in fields:
        return None
    index = fields.integer(key)
    if not 0 <= index < count:
        raise ModelFormatError(f"{fields.where}: {key} is {index}, but the vocabulary has {count} tokens")
    return index


def _eos_ids(fields: Fields, tokens: list[str], types: list[int]) -> tuple[int, ...]:
    named = {_special_id(fields, name, len(tokens)) for name in ("eos", "eot", "eom")}
    marked = {i for i, text in enumerate(tokens) if text in END_MARKERS and types[i] in (CONTROL, USER_DEFINED)}
    return tuple(sorted(marked | {index for index in named if index is not None}))
