"""OLMo 2 (2501.00656): norms after attention and MLP only, and of queries and keys over all heads.

GGUF files of OLMo 3 name this architecture; they have sliding windows."""

from __future__ import annotations

from specdec.families import gguf, huggingface
from specdec.families.base import Family, Places, Stored
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(eps=1e-5, bias="all")

ATTENTION = {"qk_norm": "full"}
LAYER = {"norms": "post"}
HUGGINGFACE: Places = {
    **huggingface.DENSE,
    **huggingface.QK_NORMS,
    "attn_post_norm": Stored("model.layers.{layer}.post_attention_layernorm.weight"),
    "mlp_post_norm": Stored("model.layers.{layer}.post_feedforward_layernorm.weight"),
}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return huggingface.decoder(fields, defaults=_DEFAULTS, attention=ATTENTION, layer=LAYER)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file. With a window every fourth layer sees the whole context, and only there rotary
    positions are scaled."""
    return gguf.decoder(
        fields,
        family="olmo2",
        scales_local=False,
        sliding=lambda number: number % 4 < 3,
        attention=ATTENTION | gguf.biases(fields),
        layer=LAYER,
    )


FAMILY = Family(
    name="olmo2",
    from_huggingface=from_huggingface,
    huggingface=HUGGINGFACE,
    gguf_name="olmo2",
    from_gguf=from_gguf,
    gguf=gguf.DECODER,
)
