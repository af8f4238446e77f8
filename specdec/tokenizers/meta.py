"""What a tokenizer's own file does not say: which tokens begin and end a text, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.parse import parse_json

META_NAME, BPE_NAME, SENTENCEPIECE_NAME = "tokenizer_meta.json", "tokenizer.json", "tokenizer.model"
KINDS = {"bpe": BPE_NAME, "sentencepiece": SENTENCEPIECE_NAME}
FORMAT = 2
_OLDER = (1,)  # what was added since has a default
MOST_TOKENS = 1 << 20  # the largest vocabulary that is known has 902 thousand; tables are made by the largest id

PREFIXES = ("model", "always", "first", "never")
"""Where a sentencepiece tokenizer puts a space before text: as its model does, before every part between special
tokens ("always") or only before a text that begins with text ("first"), where no space is, or nowhere ("never")."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the sentencepiece model does not have.

    Attributes:
        id: its token id.
        text: the text that becomes this token.
        special: it steers the model and is not text.
        strip_left: spaces before it belong to it.
        strip_right: spaces after it belong to it.
    """

    id: int
    text: str
    special: bool
    strip_left: bool = False
    strip_right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerMeta:
    """Content of tokenizer_meta.json.

    Attributes:
        kind: one of `KINDS`.
        bos_id: token that begins a text, or None.
        eos_ids: tokens that end one.
        add_bos: whether the model wants `bos_id` before its input.
        chat_template: Jinja source, or None.
        special_tokens: what the chat template may refer to: `bos_token`, `eos_token` and so on.
        added_tokens: tokens in addition to the sentencepiece model's own.
        chat_bos: whether a prompt from the chat template gets `bos_id` where the template does not write it.
        prefix: one of `PREFIXES`; only for sentencepiece.
    """

    kind: str
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    added_tokens: tuple[AddedToken, ...] = ()
    chat_bos: bool = False
    prefix: str = PREFIXES[0]

    def to_bytes(self) -> bytes:
        """The file's content; `from_bytes` restores an equal object."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1) + "\n").encode("utf-8")

    @classmethod
    def from_bytes(cls, content: bytes) -> TokenizerMeta:
        """Parse the file.

        Raises:
            ModelFormatError: damaged, or written by another version.
        """
        damaged = ModelFormatError(f"{META_NAME} is damaged: convert the model again")
        try:
            values = parse_json(content)
            version = values.pop("format")
        except unless_signalled(ValueError, TypeError, KeyError, AttributeError):
            raise damaged from None
        if version not in (FORMAT, *_OLDER):
            raise ModelFormatError(f"{META_NAME} has format {version!r}, this version reads up to {FORMAT}")
        try:
            values["eos_ids"] = tuple(values["eos_ids"])
            values["added_tokens"] = tuple(AddedToken(**token) for token in values["added_tokens"])
            meta = cls(**values)
        except (TypeError, KeyError):
            raise damaged from None
        if not _is_valid(meta):
            raise damaged
        return meta


def _is_valid(meta: TokenizerMeta) -> bool:
    ids: list[Any] = [*meta.eos_ids, *(token.id for token in meta.added_tokens)]
    ids += [] if meta.bos_id is None else [meta.bos_id]
    texts: list[Any] = [token.text for token in meta.added_tokens]
    texts += [] if meta.chat_template is None else [meta.chat_template]
    return (
        meta.kind in KINDS
        and meta.prefix in PREFIXES
        and all(type(value) is bool for value in (meta.add_bos, meta.chat_bos))
        and (meta.bos_id is not None or not meta.add_bos)
        and all(type(value) is int and 0 <= value < MOST_TOKENS for value in ids)
        and isinstance(meta.special_tokens, dict)
        and all(isinstance(value, str) for value in [*texts, *meta.special_tokens.values()])
    )
