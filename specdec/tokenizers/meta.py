"""What a tokenizer's own file does not say: which tokens begin and end a text, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from specdec.errors import ModelFormatError
from specdec.parse import parse_json

META_NAME, BPE_NAME, SENTENCEPIECE_NAME = "tokenizer_meta.json", "tokenizer.json", "tokenizer.model"
KINDS = {"bpe": BPE_NAME, "sentencepiece": SENTENCEPIECE_NAME}
FORMAT = 1
MOST_TOKENS = 1 << 24  # far above every vocabulary; tables are made by the largest id

# Tokens by which chat models end their turn; a model may name only one of them as its end of sequence.
END_MARKERS = (
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>",
    "<|end_of_turn|>", "<end_of_turn>", "<|EOT|>", "<EOT>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the sentencepiece model does not have.

    Attributes:
        id: its token id.
        text: the text that becomes this token.
        special: it steers the model and is no text.
    """

    id: int
    text: str
    special: bool


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
        added_tokens: tokens beside the sentencepiece model's own.
    """

    kind: str
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    added_tokens: tuple[AddedToken, ...] = ()

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
        except (ValueError, TypeError, KeyError, AttributeError):
            raise damaged from None
        if version != FORMAT:
            raise ModelFormatError(f"{META_NAME} has another format than {FORMAT}, the one that this version reads")
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
        and isinstance(meta.add_bos, bool)
        and (meta.bos_id is not None or not meta.add_bos)
        and all(type(value) is int and 0 <= value < MOST_TOKENS for value in ids)
        and isinstance(meta.special_tokens, dict)
        and all(isinstance(value, str) for value in [*texts, *meta.special_tokens.values()])
    )
