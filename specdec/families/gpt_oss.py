"""gpt-oss (OpenAI, 2508.10925): mixtures with biases and a clamped SwiGLU, attention sinks, every other layer with a
sliding window, weights of experts in blocks of MXFP4."""

from __future__ import annotations

import math

from specdec.errors import ModelFormatError
from specdec.families import gguf, huggingface
from specdec.families.base import Family, Places, Stored, either
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig
from specdec.model.layers import CLAMP_LIMIT, CLAMP_SLOPE

# What the model class takes when config.json does not say.
_CLASS = {"num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128}
_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_DEFAULTS = huggingface.Defaults(
    context=131_072,
    rope=RopeDefaults(theta=150_000.0),
    kv_heads=8,
    head_dim=64,
    eps=1e-5,
    activation="clamped_swiglu",
    bias="all",
    has_bias=True,
)
_ATTENTION = {"sinks": True}
_MLP = {"activation": "clamped_swiglu", "bias": True, "router_bias": True}
_BASE = "model.layers.{layer}.mlp"
_EXPERTS = f"{_BASE}.experts"


def _pairs(tensor: str, end: str = "", *, transposed: bool = False) -> Places:
    """Gates and ups whose rows take turns in one tensor."""
    among = (f"mlp.experts.gate{end}", f"mlp.experts.up{end}")
    return {kind: Stored(tensor, among=among, alternating=True, transposed=transposed) for kind in among}


_PROJECTIONS = ("gate", "up", "down")
_HUGGINGFACE: Places = {
    **huggingface.ATTENTION,
    **huggingface.BIASES,
    "attn.sinks": Stored("model.layers.{layer}.self_attn.sinks"),
    "mlp.router": Stored(f"{_BASE}.router.weight"),
    "mlp.router.bias": Stored(f"{_BASE}.router.bias"),
    **either(
        {
            **_pairs(f"{_EXPERTS}.gate_up_proj_blocks"),
            **_pairs(f"{_EXPERTS}.gate_up_proj_bias", ".bias"),
            "mlp.experts.down": Stored(f"{_EXPERTS}.down_proj_blocks"),
            "mlp.experts.down.bias": Stored(f"{_EXPERTS}.down_proj_bias"),
        },
        {
            **_pairs(f"{_EXPERTS}.gate_up_proj", transposed=True),
            "mlp.experts.down": Stored(f"{_EXPERTS}.down_proj", transposed=True),
        },
        {f"mlp.experts.{name}": Stored(f"{_EXPERTS}.{name}_proj.weight") for name in _PROJECTIONS},
        {f"mlp.experts.{name}.bias": Stored(f"{_EXPERTS}.{name}_proj.bias") for name in _PROJECTIONS},
    ),
}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    fields = fields.with_defaults(_CLASS)
    if not fields.mapping("rope_scaling").values and not fields.mapping("rope_parameters").values:
        fields = Fields({**fields.values, "rope_scaling": _ROPE}, fields.where)
    for key, only in (("swiglu_limit", CLAMP_LIMIT), ("swiglu_alpha", CLAMP_SLOPE)):
        if not math.isclose(fields.number(key, only), only):
            raise ModelFormatError(f"{fields.where}: {key} must be {only}, other values are not supported")
    mlp = huggingface.mixture(fields, count=("num_local_experts", "num_experts"), width="intermediate_size", **_MLP)
    return huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields),
        sliding=lambda number: number % 2 == 0,
        attention=_ATTENTION,
        mlp=lambda _: mlp,
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file. Its rule for rotary positions does not round borders, which no key says."""
    mlp = gguf.mixture(fields, **_MLP)
    return gguf.decoder(
        fields,
        family="gpt_oss",
        reads=("expert_gating_func",),
        truncate=False,
        sliding=lambda number: number % 2 == 0,
        attention=_ATTENTION | gguf.biases(fields),
        mlp=lambda _: mlp,
    )


FAMILY = Family(
    name="gpt_oss",
    from_huggingface=from_huggingface,
    huggingface=_HUGGINGFACE,
    gguf_name="gpt-oss",
    from_gguf=from_gguf,
    gguf={**gguf.DECODER, **gguf.EXPERTS, "mlp_norm": gguf.DECODER["attn_post_norm"]},
)
