"""Llama (2302.13971, 2407.21783) and the many models of its form. GGUF files of Mistral and Mixtral
models name it too."""

from __future__ import annotations

from specdec.families import gguf, huggingface, mixtral
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(bias="all", mlp_bias=True)

# GGUF keeps the rotary layout of the original weights.
GGUF = gguf.interleaved(gguf.DECODER)


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return huggingface.decoder(fields, defaults=_DEFAULTS)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file: with experts it is a Mixtral."""
    if fields.integer(fields.key("expert_count"), 0):
        return mixtral.from_gguf(fields)
    return gguf.decoder(fields, family="llama", attention=gguf.biases(fields))


FAMILY = Family(
    name="llama",
    from_huggingface=from_huggingface,
    huggingface=huggingface.DENSE,
    gguf_name="llama",
    from_gguf=from_gguf,
    gguf=GGUF,
)
