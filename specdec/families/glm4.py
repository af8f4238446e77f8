"""GLM-4-0414 (2406.12793), dense: norms before and after attention and MLP.

Half of each head is turned, in the interleaved layout, which is brought into the half-split one."""

from __future__ import annotations

from specdec.families import gguf, huggingface
from specdec.families.base import Family, Places, Stored
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig

DEFAULTS = huggingface.Defaults(
    context=131_072,
    rope=RopeDefaults(share=0.5),
    kv_heads=2,
    head_dim=128,
    eps=1.5625e-7,
    bias="qkv",
    has_bias=True,
)
_LAYER = "model.layers.{layer}"
HUGGINGFACE: Places = gguf.interleaved({**huggingface.DENSE, **huggingface.FUSED_MLP})
GGUF: Places = {**gguf.interleaved(gguf.DECODER), **gguf.FUSED_MLP}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return huggingface.decoder(fields, defaults=DEFAULTS, layer={"norms": "both"})


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    return gguf.decoder(fields, family="glm4", turns_part=True, attention=gguf.biases(fields), layer={"norms": "both"})


FAMILY = Family(
    name="glm4",
    from_huggingface=from_huggingface,
    huggingface={
        **HUGGINGFACE,
        "attn_post_norm": Stored(f"{_LAYER}.post_self_attn_layernorm.weight"),
        "mlp_post_norm": Stored(f"{_LAYER}.post_mlp_layernorm.weight"),
    },
    gguf_name="glm4",
    from_gguf=from_gguf,
    gguf=GGUF,
)
