"""OLMoE (2409.02060): mixtures of experts, norms of queries and keys over all heads."""

from __future__ import annotations

from specdec.errors import ModelFormatError
from specdec.families import gguf, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(context=4096, eps=1e-5, bias="all")
# What the model class takes when config.json does not say.
_CLASS = {"num_experts": 64, "num_experts_per_tok": 8}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    fields = fields.with_defaults(_CLASS)
    if "clip_qkv" in fields:
        raise ModelFormatError(f"{fields.where}: clip_qkv is not supported, only null")
    experts = huggingface.mixture(
        fields,
        count=("num_experts", "num_local_experts"),
        width="intermediate_size",
        router="softmax-then-top",
        renormalise=fields.flag("norm_topk_prob", False),
    )
    attention = {"qk_norm": "full"}
    return huggingface.decoder(fields, defaults=_DEFAULTS, attention=attention, mlp=lambda _: experts)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    own = "expert_feed_forward_length"
    experts = gguf.mixture(
        fields,
        width=own if fields.key(own) in fields else "feed_forward_length",
        router="softmax-then-top",
        renormalise=fields.flag(fields.key("expert_weights_norm"), False),
    )
    return gguf.decoder(
        fields,
        family="olmoe",
        reads=("expert_weights_norm",),
        attention={"qk_norm": "full"} | gguf.biases(fields),
        mlp=lambda _: experts,
    )


FAMILY = Family(
    name="olmoe",
    from_huggingface=from_huggingface,
    huggingface={**huggingface.DENSE, **huggingface.QK_NORMS, **huggingface.experts()},
    gguf_name="olmoe",
    from_gguf=from_gguf,
    gguf={**gguf.DECODER, **gguf.EXPERTS},
)
