"""Granite 3 (IBM), dense: a Llama whose embeddings, scores, residuals and logits have scales of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specdec.families import gguf, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.smollm3 import without_positions
from specdec.model.architecture import ModelConfig
from specdec.model.layers import Mlp

_DEFAULTS = huggingface.Defaults(bias="all", mlp_bias=True)
_READS = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale", "expert_shared_feed_forward_length")


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return scaled(fields, defaults=_DEFAULTS)


def scaled(fields: Fields, **arguments: Any) -> ModelConfig:
    """The model of a config.json; `arguments` are those of `huggingface.decoder`."""
    return huggingface.decoder(
        fields,
        attention={"scale": fields.number("attention_multiplier", 1.0)},
        layer={"residual_scale": fields.number("residual_multiplier", 1.0)},
        embed_scale=fields.number("embedding_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
        **arguments,
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    return scaled_gguf(fields, family="granite")


def scaled_gguf(fields: GgufFields, *, family: str, mlp: Callable[[int], Mlp] | None = None) -> ModelConfig:
    """The model of a GGUF file, with the MLPs `mlp`."""
    scale = gguf.attention_scale(fields, gguf.heads(fields)["head_dim"])
    config = gguf.decoder(
        fields,
        family=family,
        reads=_READS,
        attention={"scale": scale} | gguf.biases(fields),
        mlp=mlp,
        layer={"residual_scale": gguf.scale(fields, "residual_scale", 1.0)},
        embed_scale=gguf.scale(fields, "embedding_scale", 1.0),
        logit_scale=1 / gguf.scale(fields, "logit_scale", 1.0),
    )
    # The key by which llama.cpp's converter marks models without positions.
    turns = fields.flag(fields.key("rope.scaling.finetuned"), True)
    return config if turns else without_positions(config, [False] * config.num_layers)


FAMILY = Family(
    name="granite",
    from_huggingface=from_huggingface,
    huggingface=huggingface.DENSE,
    gguf_name="granite",
    from_gguf=from_gguf,
    gguf=gguf.interleaved(gguf.DECODER),
)
