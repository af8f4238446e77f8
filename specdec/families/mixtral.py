"""Mixtral (2401.04088): a Mistral with a mixture of experts for each MLP. Its GGUF files call themselves Llama."""

from __future__ import annotations

from specdec.families import gguf, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(context=131_072, rope=RopeDefaults(theta=1e6), kv_heads=8, eps=1e-5)
# What the model class takes when config.json does not say.
_CLASS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_PROJECTIONS = {"gate": "w1", "up": "w3", "down": "w2"}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    fields = fields.with_defaults(_CLASS)
    mlp = huggingface.mixture(fields, count="num_local_experts", width="intermediate_size")
    return huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields),
        mlp=lambda _: mlp,
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file of Llama's architecture that has experts."""
    mlp = gguf.mixture(fields, width="feed_forward_length")
    return gguf.decoder(fields, family="mixtral", attention=gguf.biases(fields), mlp=lambda _: mlp)


FAMILY = Family(
    name="mixtral",
    from_huggingface=from_huggingface,
    huggingface={
        **huggingface.ATTENTION,
        **huggingface.experts("model.layers.{layer}.block_sparse_moe", _PROJECTIONS),
    },
    gguf={**gguf.interleaved(gguf.DECODER), **gguf.EXPERTS},
)
