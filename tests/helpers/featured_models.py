"""Small model descriptions that together have every feature of `specdec.model.features`, each near a real family."""

from __future__ import annotations

from typing import Any

from specdec.model.architecture import ModelConfig
from specdec.model.layers import Attention, Layer, Mlp, Rope

_SIZES: dict[str, Any] = {"vocab": 47, "hidden": 32, "eps": 1e-5, "max_context": 128}


def _attention(**values: Any) -> Attention:
    return Attention(**({"heads": 4, "kv_heads": 2, "head_dim": 8} | values))


def _mixture(**values: Any) -> Mlp:
    return Mlp(**({"width": 24, "experts": 4, "experts_used": 2} | values))


def _model(family: str, layers: list[Layer], **values: Any) -> ModelConfig:
    return ModelConfig(**(_SIZES | {"family": family, "layers": tuple(layers), "tied": True} | values))


def _gemma(window_theta: float) -> list[Layer]:
    mlp, layers = Mlp(width=56, activation="gelu_tanh"), []
    for window in (5, None, 5):
        rope = Rope(theta=window_theta) if window else Rope(theta=1e6, factors=(8.0,) * 4)
        attention = _attention(rope=rope, window=window, qk_norm="head", scale=0.2, softcap=2.0)
        layers.append(Layer(attention=attention, mlp=mlp, norms="both"))
    return layers


def _post_norms() -> list[Layer]:
    rope = Rope(factors=(1.0, 1.5, 3.0, 4.0), attention_factor=1.2)
    windows = [_attention(qk_norm="full", rope=Rope(), window=6), _attention(qk_norm="full", rope=rope)]
    return [Layer(attention=one, mlp=Mlp(width=56), norms="post") for one in windows]


def _part_turned(kind: Any) -> list[Layer]:
    attention = _attention(rope=Rope(share=0.5, kind=kind), bias=True, output_bias=True)
    return [Layer(attention=attention, mlp=Mlp(width=56, bias=True), norms="both")] * 2


def _no_positions() -> list[Layer]:
    ropes = Rope(theta=2e6), Rope(kind="none")
    return [Layer(attention=_attention(rope=rope, growth=0.3, growth_span=4), mlp=Mlp(width=56)) for rope in ropes]


def _shared_experts() -> list[Layer]:
    mlps = Mlp(width=56), _mixture(shared_width=40), _mixture(router="softmax-then-top", renormalise=False)
    return [Layer(attention=_attention(scale=0.25, gate=True), mlp=mlp, residual_scale=0.4) for mlp in mlps]


def _clamped() -> list[Layer]:
    mlp = _mixture(activation="clamped_swiglu", bias=True, router_bias=True)
    attentions = (_attention(bias=True, output_bias=True, sinks=True, window=window) for window in (4, None))
    return [Layer(attention=attention, mlp=mlp) for attention in attentions]


def _wide_heads() -> list[Layer]:
    attention = Attention(heads=2, kv_heads=1, head_dim=256, qk_norm="head", window=7)
    return [Layer(attention=attention, mlp=Mlp(width=56, activation="gelu_tanh"), norms="both")] * 2


FEATURED: dict[str, ModelConfig] = {
    "gemma": _model("gemma", _gemma(1e4), norm_offset=1.0, embed_scale=32**0.5, logit_cap=3.0),
    "post-norms": _model("olmo", _post_norms(), tied=False),
    "part-half": _model("phi", _part_turned("half")),
    "part-interleaved": _model("glm", _part_turned("interleaved"), tied=False),
    "no-positions": _model("smollm", _no_positions()),
    "shared-experts": _model("granite", _shared_experts(), embed_scale=6.0, logit_scale=0.25),
    "clamped": _model("gpt-oss", _clamped(), tied=False),
    "wide-heads": _model("gemma", _wide_heads()),
}
