"""Phi-3 (2404.14219), Phi-3.5, Phi-4 and Phi-4-mini: queries, keys and values in one tensor, gates and ups in another,
rotary positions by LongRoPE, perhaps of part of the head."""

from __future__ import annotations

from specdec.families import gguf, huggingface
from specdec.families.base import Family, Stored
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(context=4096, rope=RopeDefaults(share=1.0), eps=1e-5)
_QKV = ("attn.q", "attn.k", "attn.v")


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    # What the first models call "yarn" is the rule of the others, which is called "su", too.
    rule = fields.mapping("rope_scaling")
    if "yarn" in (rule.values.get("type"), rule.values.get("rope_type")):
        named = {**rule.values, "type": "longrope", "rope_type": "longrope"}
        fields = Fields({**fields.values, "rope_scaling": named}, fields.where)
    window = huggingface.stated_window(fields)
    return huggingface.decoder(fields, defaults=_DEFAULTS, window=window)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    return gguf.decoder(fields, family="phi3", turns_part=True)


FAMILY = Family(
    name="phi3",
    from_huggingface=from_huggingface,
    huggingface={
        **huggingface.ATTENTION,
        **huggingface.FUSED_MLP,
        **{kind: Stored("model.layers.{layer}.self_attn.qkv_proj.weight", among=_QKV) for kind in _QKV},
    },
    gguf_name="phi3",
    from_gguf=from_gguf,
    gguf={**gguf.DECODER, **gguf.FUSED_MLP},
)
