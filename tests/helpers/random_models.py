"""Small models of random features, several of them at once and different ones in every layer."""

from __future__ import annotations

import random

from specdec.model.architecture import ModelConfig
from specdec.model.layers import Attention, Layer, Mlp, Rope


def random_config(seed: int, *, unit: int = 8) -> ModelConfig:
    """A model of 2 to 4 layers, 47 tokens and any mixture of features; equal seeds give equal models.

    Args:
        unit: every width is a multiple of it: 256 makes rows whole blocks of any quantised type.
    """
    draw = random.Random(seed)
    hidden = draw.choice([4, 5, 8]) * unit if unit < 32 else unit
    layers = [_layer(draw, unit) for _ in range(draw.randint(1, 3))]
    layers.append(draw.choice(layers) if draw.random() < 0.5 else _layer(draw, unit))
    return ModelConfig(
        family="random",
        vocab=47,
        hidden=hidden,
        layers=tuple(layers),
        eps=1e-5,
        max_context=400,
        norm_offset=draw.choice([0.0, 1.0]),
        embed_scale=draw.choice([1.0, 3.0]),
        logit_scale=draw.choice([1.0, 0.5]),
        logit_cap=draw.choice([None, 5.0]),
        tied=draw.random() < 0.5,
    )


def _layer(draw: random.Random, unit: int) -> Layer:
    return Layer(
        attention=_attention(draw, unit),
        mlp=_mlp(draw, unit),
        norms=draw.choice(["pre", "post", "both"]),
        residual_scale=draw.choice([1.0, 0.5]),
    )


def _attention(draw: random.Random, unit: int) -> Attention:
    if unit < 32:
        kv_heads, group, size = draw.randint(1, 3), draw.randint(1, 4), draw.choice([4, 8, 12, 80, 96, 256])
    else:
        kv_heads, group, size = draw.choice([1, 2]), draw.choice([2, 4]), draw.choice([128, 256])
    share = draw.choice([1.0, 0.5])
    turned = int(size * share) // 2
    rope = Rope(
        theta=draw.choice([1e4, 1e6]),
        factors=draw.choice([None, tuple(1.0 + j / turned for j in range(turned))]),
        share=share,
        kind=draw.choice(["half", "half", "interleaved", "none"]),
        attention_factor=draw.choice([1.0, 1.3]),
    )
    growth = draw.choice([0.0, 0.0, 0.2])
    return Attention(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=size,
        rope=rope,
        window=draw.choice([None, 3, 9, 130]),
        bias=draw.random() < 0.5,
        output_bias=draw.random() < 0.5,
        qk_norm=draw.choice(["none", "head", "full"]),
        scale=draw.choice([None, 0.2]),
        softcap=draw.choice([None, 2.0]),
        sinks=draw.random() < 0.4,
        gate=draw.random() < 0.3,
        growth=growth,
        growth_span=5 if growth else 0,
    )


def _mlp(draw: random.Random, unit: int) -> Mlp:
    experts = draw.choice([0, 0, 4, 7])
    router = draw.choice(["top-then-softmax", "softmax-then-top"])
    return Mlp(
        width=draw.choice([3, 5, 7]) * unit if unit < 32 else unit,
        activation=draw.choice(["silu", "gelu_tanh", "clamped_swiglu"]),
        bias=draw.random() < 0.5,
        experts=experts,
        experts_used=draw.randint(1, 3) if experts else 0,
        router=router,
        renormalise=router == "top-then-softmax" or draw.random() < 0.5,
        router_bias=experts > 0 and draw.random() < 0.5,
        shared_width=draw.choice([0, 2 * unit]) if experts else 0,
    )
