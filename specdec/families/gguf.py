"""What the GGUF files of the families here have in common. Each family states what differs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from specdec.errors import ModelFormatError
from specdec.families.base import Stored
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_gguf import rope_rule
from specdec.model.architecture import ModelConfig

# Keys that change the arithmetic in ways that no family here has, with the value that leaves it as it is.
_NEUTRAL = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_gating_func": 1,
    "expert_shared_count": 0,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "leading_dense_block_count": 0,
    "logit_scale": 1.0,
    "nextn_predict_layers": 0,
    "residual_scale": 1.0,
    "router_logit_softcapping": 0.0,
}
_NEVER = ("attention.sliding_window_pattern", "attention.shared_kv_layers", "rope.dimension_sections")

EMBED, HEAD = "token_embd.weight", "output.weight"

# Norms and matrices of a decoder with dense MLPs.
DECODER = {
    "embed": Stored(EMBED),
    "head": Stored(HEAD),
    "final_norm": Stored("output_norm.weight"),
    "attn_norm": Stored("blk.{layer}.attn_norm.weight"),
    "mlp_norm": Stored("blk.{layer}.ffn_norm.weight"),
    "attn.q": Stored("blk.{layer}.attn_q.weight"),
    "attn.k": Stored("blk.{layer}.attn_k.weight"),
    "attn.v": Stored("blk.{layer}.attn_v.weight"),
    "attn.o": Stored("blk.{layer}.attn_output.weight"),
    "mlp.gate": Stored("blk.{layer}.ffn_gate.weight"),
    "mlp.up": Stored("blk.{layer}.ffn_up.weight"),
    "mlp.down": Stored("blk.{layer}.ffn_down.weight"),
}
QKV_BIASES = {f"attn.{name}.bias": Stored(f"blk.{{layer}}.attn_{name}.bias") for name in "qkv"}
QK_NORMS = {f"attn.{name}_norm": Stored(f"blk.{{layer}}.attn_{name}_norm.weight") for name in "qk"}


def decoder(fields: GgufFields, *, family: str, **features: Any) -> ModelConfig:
    """The model that the metadata describes.

    Args:
        fields: of the file.
        family: of the config.
        features: arguments of `ModelConfig.uniform` that the family adds.

    Raises:
        ModelFormatError: a missing or senseless value, or a feature that the families here do not have.
    """
    key = fields.key
    heads, hidden = fields.per_layer("attention.head_count"), fields.integer(key("embedding_length"))
    if key("attention.key_length") not in fields and (heads <= 0 or hidden % heads):
        raise ModelFormatError(f"{fields.where}: embedding_length {hidden} must be a multiple of head_count {heads}")
    head_dim = fields.integer(key("attention.key_length"), hidden // heads if heads > 0 else 0)
    _refuse_unsupported(fields, head_dim)
    if fields.integer(key("expert_count"), 0) and "num_experts" not in features:
        raise ModelFormatError(f"{fields.where}: experts are not supported for {fields.architecture}")
    window = key("attention.sliding_window")
    return ModelConfig.uniform(
        family=family,
        vocab_size=fields.vocab,
        hidden_size=hidden,
        intermediate_size=fields.per_layer("feed_forward_length"),
        num_layers=fields.integer(key("block_count")),
        num_heads=heads,
        num_kv_heads=fields.per_layer("attention.head_count_kv", heads),
        head_dim=head_dim,
        # Stored as float32: its shortest decimal is the number that was meant, 1e-05 and not 9.99999974e-06.
        norm_eps=float(str(np.float32(fields.number(key("attention.layer_norm_rms_epsilon"))))),
        **rope_rule(fields, head_dim=head_dim, max_context=fields.integer(key("context_length"))).arguments(),
        sliding_window=(fields.integer(window) or None) if window in fields else None,
        tie_embeddings=fields.tied,
        **features,
    )


def _refuse_unsupported(fields: GgufFields, head_dim: int) -> None:
    for name, neutral in _NEUTRAL.items():
        key = fields.key(name)
        if key in fields and fields.values[key] != neutral:
            raise ModelFormatError(f"{fields.where}: {key} must be {neutral}, other values are not supported")
    for name in _NEVER:
        if fields.key(name) in fields:
            raise ModelFormatError(f"{fields.where}: {fields.key(name)} is not supported")
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(fields.key(name), head_dim) != head_dim:
            raise ModelFormatError(f"{fields.where}: {fields.key(name)} must be the head size {head_dim}")
    key, usual = fields.key("attention.scale"), 1 / math.sqrt(max(head_dim, 1))
    scale = fields.number(key, usual)
    if not math.isclose(scale, usual, rel_tol=1e-6):  # stored as float32
        raise ModelFormatError(f"{fields.where}: {key} must be 1/sqrt({head_dim}), not {scale:.6g}")
