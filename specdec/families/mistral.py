"""Mistral (2310.06825): a Llama with a sliding window. Its GGUF files call themselves Llama."""

from __future__ import annotations

from specdec.families import huggingface
from specdec.families.base import Family, Tensors
from specdec.families.fields import Fields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(context=131_072, kv_heads=8)
_WINDOW = 4096  # what the model class takes when config.json does not mention one


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    window = huggingface.stated_window(fields) if "sliding_window" in fields.values else _WINDOW
    return huggingface.decoder(fields, defaults=_DEFAULTS, window=window)


FAMILY = Family(
    name="mistral",
    from_huggingface=from_huggingface,
    huggingface=(Tensors(huggingface.ATTENTION | huggingface.MLP),),
)
