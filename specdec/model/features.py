"""What a model needs beyond the plain decoder, by name, so that a runtime can say what it does not execute.

The plain decoder, which every runtime executes: equal layers; rotary positions of the whole head in the half-split
layout; attention over the whole context; a SiLU-gated MLP; norms before attention and MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from specdec.model.architecture import ModelConfig
from specdec.model.layers import Attention, Layer, Mlp, Rope


class Feature(StrEnum):
    """A feature by the words that messages use."""

    ROPE_FACTORS = "scaled rotary frequencies"
    ROPE_SHARE = "rotary positions of part of the head"
    ROPE_INTERLEAVED = "interleaved rotary positions"
    ROPE_NONE = "layers without positions"
    ROPE_ATTENTION = "scaled rotary sines and cosines"
    WINDOW = "sliding windows"
    QKV_BIAS = "biases of queries, keys and values"
    OUTPUT_BIAS = "biases of the attention output"
    QK_NORM = "norms of queries and keys by head"
    QK_NORM_FULL = "norms of queries and keys over all heads"
    SCALE = "scores of another scale"
    SOFTCAP = "softcap of scores"
    SINKS = "attention sinks"
    GATE = "gated attention"
    GROWTH = "scores whose scale grows with the position"
    GELU = "gates by GELU"
    CLAMPED = "gates by clamped SwiGLU"
    MLP_BIAS = "biases of the MLP"
    MIXTURE = "mixtures of experts"
    ROUTER_BIAS = "biases of the router"
    ROUTER = "softmax over all experts before the choice"
    SHARED = "shared experts"
    POST_NORMS = "norms after the block"
    RESIDUAL_SCALE = "scaled residuals"
    NORM_OFFSET = "norms with an offset"
    EMBED_SCALE = "scaled embeddings"
    LOGIT_SCALE = "scaled logits"
    LOGIT_CAP = "softcap of logits"
    MIXED_SHAPES = "layers of different shapes"
    MIXED_ROPE = "rotary positions that differ between layers"


def features_of(config: ModelConfig) -> frozenset[Feature]:
    """The features that a runtime must execute to run the model."""
    found = set(_of_model(config))
    for layer in config.kinds:
        found |= _of_attention(layer.attention) | _of_rope(layer.attention.rope) | _of_mlp(layer.mlp)
        found |= _where({Feature.POST_NORMS: layer.norms != "pre", Feature.RESIDUAL_SCALE: layer.residual_scale != 1})
    return frozenset(found)


def _where(conditions: dict[Feature, bool]) -> set[Feature]:
    return {feature for feature, needed in conditions.items() if needed}


def _of_model(config: ModelConfig) -> set[Feature]:
    return _where(
        {
            Feature.NORM_OFFSET: config.norm_offset != 0,
            Feature.EMBED_SCALE: config.embed_scale != 1,
            Feature.LOGIT_SCALE: config.logit_scale != 1,
            Feature.LOGIT_CAP: config.logit_cap is not None,
            Feature.MIXED_SHAPES: _differ(config, _shape),
            Feature.MIXED_ROPE: _differ(config, lambda layer: layer.attention.rope),
        }
    )


def _differ(config: ModelConfig, of: Callable[[Layer], object]) -> bool:
    return len({of(layer) for layer in config.kinds}) > 1


def _shape(layer: Layer) -> tuple[object, ...]:
    """What is equal in all layers where one set of kernels runs them."""
    attention, mlp = layer.attention, layer.mlp
    heads = attention.heads, attention.kv_heads, attention.head_dim, attention.bias, attention.qk_norm
    others = attention.output_bias, attention.sinks, attention.gate
    return *heads, *others, mlp, layer.norms


def _of_rope(rope: Rope) -> set[Feature]:
    return _where(
        {
            Feature.ROPE_FACTORS: rope.factors is not None,
            Feature.ROPE_SHARE: rope.share < 1,
            Feature.ROPE_INTERLEAVED: rope.kind == "interleaved",
            Feature.ROPE_NONE: rope.kind == "none",
            Feature.ROPE_ATTENTION: rope.attention_factor != 1,
        }
    )


def _of_attention(attention: Attention) -> set[Feature]:
    return _where(
        {
            Feature.WINDOW: attention.window is not None,
            Feature.QKV_BIAS: attention.bias,
            Feature.OUTPUT_BIAS: attention.output_bias,
            Feature.QK_NORM: attention.qk_norm == "head",
            Feature.QK_NORM_FULL: attention.qk_norm == "full",
            Feature.SCALE: attention.scale is not None,
            Feature.SOFTCAP: attention.softcap is not None,
            Feature.SINKS: attention.sinks,
            Feature.GATE: attention.gate,
            Feature.GROWTH: attention.growth != 0,
        }
    )


def _of_mlp(mlp: Mlp) -> set[Feature]:
    return _where(
        {
            Feature.GELU: mlp.activation == "gelu_tanh",
            Feature.CLAMPED: mlp.activation == "clamped_swiglu",
            Feature.MLP_BIAS: mlp.bias,
            Feature.MIXTURE: mlp.experts > 0,
            Feature.ROUTER: mlp.experts > 0 and (mlp.router != "top-then-softmax" or not mlp.renormalise),
            Feature.ROUTER_BIAS: mlp.router_bias,
            Feature.SHARED: mlp.shared_width > 0,
        }
    )
