"""Qwen3 (2505.09388), dense: norms of queries and keys by head, the last layers perhaps sliding."""

from __future__ import annotations

from specdec.families import gguf, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(context=32_768, kv_heads=32, head_dim=128, bias="all")
_FIRST_SLIDING = 28  # what the model class takes when config.json does not say


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    first = fields.integer("max_window_layers", _FIRST_SLIDING)
    return huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields) if fields.flag("use_sliding_window", False) else None,
        sliding=lambda number: number >= first,
        attention={"qk_norm": "head"},
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    return gguf.decoder(fields, family="qwen3", attention={"qk_norm": "head"} | gguf.biases(fields))


FAMILY = Family(
    name="qwen3",
    from_huggingface=from_huggingface,
    huggingface={**huggingface.DENSE, **huggingface.QK_NORMS},
    gguf_name="qwen3",
    from_gguf=from_gguf,
    gguf=gguf.DECODER,
)
