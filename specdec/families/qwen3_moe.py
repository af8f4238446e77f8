"""Qwen3 (2505.09388) with mixtures of experts, perhaps with dense layers among them."""

from __future__ import annotations

from specdec.errors import ModelFormatError
from specdec.families import gguf, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig
from specdec.model.layers import Mlp

_DEFAULTS = huggingface.Defaults(context=32_768, kv_heads=4, bias="all")
# What the model class takes when config.json does not say.
_CLASS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    fields = fields.with_defaults(_CLASS)
    step, dense = fields.integer("decoder_sparse_step", 1), fields.array("mlp_only_layers")
    if step <= 0:
        raise fields.wrong("decoder_sparse_step", "a positive whole number")
    if not all(type(number) is int for number in dense):
        raise ModelFormatError(f"{fields.where}: mlp_only_layers must be a list of numbers of layers")
    experts = huggingface.mixture(
        fields,
        count=("num_local_experts", "num_experts"),
        width="moe_intermediate_size",
        router="softmax-then-top",
        renormalise=fields.flag("norm_topk_prob", False),
    )
    only = Mlp(width=fields.integer("intermediate_size"))
    return huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields) if fields.flag("use_sliding_window", False) else None,
        attention={"qk_norm": "head"},
        mlp=lambda number: only if number in dense or (number + 1) % step else experts,
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file. llama.cpp always divides the weights of experts by their sum."""
    experts = gguf.mixture(
        fields,
        router="softmax-then-top",
        renormalise=fields.flag(fields.key("expert_weights_norm"), True),
    )
    return gguf.decoder(
        fields,
        family="qwen3_moe",
        reads=("expert_weights_norm",),
        attention={"qk_norm": "head"} | gguf.biases(fields),
        mlp=lambda number: experts if f"blk.{number}.ffn_gate_inp.weight" in fields.tensors else gguf.dense(fields),
    )


FAMILY = Family(
    name="qwen3_moe",
    from_huggingface=from_huggingface,
    huggingface={**huggingface.DENSE, **huggingface.QK_NORMS, **huggingface.experts()},
    gguf_name="qwen3moe",
    from_gguf=from_gguf,
    gguf={**gguf.DECODER, **gguf.EXPERTS},
)
