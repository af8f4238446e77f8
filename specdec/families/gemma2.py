"""Gemma 2 (2408.00118): norms before and after with an offset, soft caps of scores and logits, every other layer with
a sliding window."""

from __future__ import annotations

import math
from typing import Any

from specdec.errors import ModelFormatError
from specdec.families import gguf, huggingface
from specdec.families.base import Family, Places, Stored
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

# What the model class takes when config.json does not say.
_CLASS = {
    "vocab_size": 256_000, "num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "sliding_window": 4096,
}  # fmt: skip
_DEFAULTS = huggingface.Defaults(context=8192, head_dim=256, tied=True, activation="gelu_tanh", bias="all")
_LAYER, _LARGEST = "model.layers.{layer}", 46  # layers of the model with another scale of scores

LAYER = {"norms": "both"}
HUGGINGFACE: Places = {
    **huggingface.DENSE,
    "attn_post_norm": Stored(f"{_LAYER}.post_attention_layernorm.weight"),
    "mlp_norm": Stored(f"{_LAYER}.pre_feedforward_layernorm.weight"),
    "mlp_post_norm": Stored(f"{_LAYER}.post_feedforward_layernorm.weight"),
}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return gemma(fields.with_defaults(_CLASS), defaults=_DEFAULTS, sliding=lambda n: n % 2 == 0)


def gemma(fields: Fields, *, attention: dict[str, Any] | None = None, **arguments: Any) -> ModelConfig:
    """What Gemma 2 and 3 have in common; `arguments` are those of `huggingface.decoder`."""
    if fields.flag("use_bidirectional_attention", False):
        raise ModelFormatError(f"{fields.where}: attention in both directions (an encoder) is not supported")
    caps = {
        key: fields.number(f"{key}_logit_softcapping")
        for key in ("attn", "final")
        if f"{key}_logit_softcapping" in fields
    }
    scale = fields.number("query_pre_attn_scalar") ** -0.5
    return huggingface.decoder(
        fields,
        window=huggingface.stated_window(fields),
        attention={"scale": scale, "softcap": caps.get("attn"), **(attention or {})},
        layer=LAYER,
        norm_offset=1.0,
        embed_scale=math.sqrt(fields.number("hidden_size")),
        logit_cap=caps.get("final"),
        **arguments,
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file, whose norms have their offset in them."""
    return gemma_gguf(
        fields,
        family="gemma2",
        largest=_LARGEST,
        attention={"softcap": gguf.scale(fields, "attn_logit_softcapping", 50.0)},
        logit_cap=gguf.scale(fields, "final_logit_softcapping", 30.0),
        sliding=lambda number: number % 2 == 0,
    )


def gemma_gguf(fields: GgufFields, *, largest: int, attention: dict[str, Any], **arguments: Any) -> ModelConfig:
    """What GGUF files of Gemma 2 and 3 have in common.

    Args:
        fields: of the file.
        largest: number of layers of the model whose scores are scaled by the width of the model for each head.
        attention: arguments of `Attention`.
        arguments: those of `gguf.decoder`.
    """
    shape, hidden = gguf.heads(fields), fields.integer(fields.key("embedding_length"))
    scale = gguf.attention_scale(fields, shape["head_dim"])
    if scale is None and fields.integer(fields.key("block_count")) == largest:
        scale = (hidden // shape["heads"]) ** -0.5
    return gguf.decoder(
        fields,
        reads=("attention.scale", "attn_logit_softcapping", "final_logit_softcapping"),
        attention={"scale": scale, **attention},
        activation="gelu_tanh",
        layer=LAYER,
        embed_scale=math.sqrt(hidden),
        **arguments,
    )


FAMILY = Family(
    name="gemma2",
    from_huggingface=from_huggingface,
    huggingface=HUGGINGFACE,
    gguf_name="gemma2",
    from_gguf=from_gguf,
    gguf=gguf.DECODER,
)
