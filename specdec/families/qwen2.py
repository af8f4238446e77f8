"""Qwen2 and Qwen2.5 (2407.10671, 2412.15115): biases of queries, keys and values, the last layers perhaps sliding."""

from __future__ import annotations

from specdec.families import gguf, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(context=32_768, kv_heads=32)
_FIRST_SLIDING = 28  # what the model class takes when config.json does not say


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    first = fields.integer("max_window_layers", _FIRST_SLIDING)
    return huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields) if fields.flag("use_sliding_window", False) else None,
        sliding=lambda number: number >= first,
        attention={"bias": True},
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    return gguf.decoder(fields, family="qwen2", attention={"bias": True})


FAMILY = Family(
    name="qwen2",
    from_huggingface=from_huggingface,
    huggingface=huggingface.DENSE,
    gguf_name="qwen2",
    from_gguf=from_gguf,
    gguf=gguf.DECODER,
)
