"""What the GGUF files of the families here have in common. Each family states what differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from specdec.errors import ModelFormatError
from specdec.families.base import Places, Stored, changed
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_gguf import rope_rules
from specdec.model.architecture import ModelConfig, check_layers
from specdec.model.layers import Activation, Attention, Layer, Mlp

# Keys that change the arithmetic, with the value that leaves it as it is. A family names those that it reads.
_NEUTRAL = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_gating_func": 1,
    "expert_shared_count": 0,
    "expert_shared_feed_forward_length": 0,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "leading_dense_block_count": 0,
    "logit_scale": 1.0,
    "nextn_predict_layers": 0,
    "residual_scale": 1.0,
    "router_logit_softcapping": 0.0,
}
_NEVER = ("attention.shared_kv_layers", "rope.dimension_sections", "deepstack_mapping")
PATTERN = "attention.sliding_window_pattern"

EMBED, HEAD = "token_embd.weight", "output.weight"
_LAYER, _PROJECTIONS = "blk.{layer}", ("gate", "up", "down")
_QKV, _GATE_UP = ("attn.q", "attn.k", "attn.v"), ("mlp.gate", "mlp.up")

_ATTENTION: Places = {
    "attn.o": Stored(f"{_LAYER}.attn_output.weight"),
    "attn.o.bias": Stored(f"{_LAYER}.attn_output.bias"),
    **{f"attn.{name}_norm": Stored(f"{_LAYER}.attn_{name}_norm.weight") for name in "qk"},
    "attn.sinks": Stored(f"{_LAYER}.attn_sinks.weight"),
}
# Queries, keys and values by themselves, or in one tensor.
_HEADS: Places = {
    f"attn.{name}{end}": (
        Stored(f"{_LAYER}.attn_{name}.{what}"),
        Stored(f"{_LAYER}.attn_qkv.{what}", among=tuple(kind + end for kind in _QKV)),
    )
    for name in "qkv"
    for end, what in (("", "weight"), (".bias", "bias"))
}
_MLP: Places = {
    f"mlp.{name}{end}": Stored(f"{_LAYER}.ffn_{name}.{what}")
    for name in _PROJECTIONS
    for end, what in (("", "weight"), (".bias", "bias"))
}
_EXPERT_AMONG = ("mlp.experts.gate", "mlp.experts.up")

DECODER: Places = {
    "embed": Stored(EMBED),
    "head": Stored(HEAD),
    "final_norm": Stored("output_norm.weight"),
    "attn_norm": Stored(f"{_LAYER}.attn_norm.weight"),
    "mlp_norm": Stored(f"{_LAYER}.ffn_norm.weight"),
    "attn_post_norm": Stored(f"{_LAYER}.post_attention_norm.weight"),
    "mlp_post_norm": Stored(f"{_LAYER}.post_ffw_norm.weight"),
    **_HEADS,
    **_ATTENTION,
    **_MLP,
}
"""Every tensor of a decoder with dense MLPs that any of the families has."""

FUSED_MLP: Places = {name: Stored(f"{_LAYER}.ffn_up.weight", among=_GATE_UP) for name in _GATE_UP}
"""Gates before ups, in the tensor of the ups."""

EXPERTS: Places = {
    "mlp.router": Stored(f"{_LAYER}.ffn_gate_inp.weight"),
    "mlp.router.bias": Stored(f"{_LAYER}.ffn_gate_inp.bias"),
    **{
        f"mlp.experts.{name}": (
            Stored(f"{_LAYER}.ffn_{name}_exps.weight"),
            Stored(f"{_LAYER}.ffn_{name}.{{expert}}.weight"),
            *([] if name == "down" else [Stored(f"{_LAYER}.ffn_gate_up_exps.weight", among=_EXPERT_AMONG)]),
        )
        for name in _PROJECTIONS
    },
    **{f"mlp.experts.{name}.bias": Stored(f"{_LAYER}.ffn_{name}_exps.bias") for name in _PROJECTIONS},
    **{f"mlp.shared.{name}": Stored(f"{_LAYER}.ffn_{name}_shexp.weight") for name in _PROJECTIONS},
}
"""Router, experts (stacked, as older files have them, or gates and ups in one tensor) and the shared expert."""


def interleaved(places: Places) -> Places:
    """The same, where queries and keys are in the interleaved rotary layout."""
    turned = {kind: place for kind, place in places.items() if kind.removesuffix(".bias") in ("attn.q", "attn.k")}
    return {**places, **changed(turned, lambda place: replace(place, interleaved=True))}


def decoder(
    fields: GgufFields,
    *,
    family: str,
    reads: Collection[str] = (),
    turns_part: bool = False,
    scales_local: bool = True,
    local_theta: float | None = None,
    truncate: bool = True,
    sliding: Callable[[int], bool] | None = lambda _: True,
    attention: Mapping[str, Any] | None = None,
    mlp: Callable[[int], Mlp] | None = None,
    activation: Activation = "silu",
    layer: Mapping[str, Any] | None = None,
    **model: Any,
) -> ModelConfig:
    """The model that the metadata describes.

    Args:
        fields: of the file.
        family: of the config.
        reads: keys that change the arithmetic and that the family reads itself.
        turns_part: rotary positions may turn a part of the head.
        scales_local: rotary scaling counts in layers with a sliding window, too.
        local_theta: base of the frequencies in those, where the file says nothing; None is that of the others.
        truncate: see `rope.yarn_factors`.
        sliding: whether a layer has the window, where no pattern is stated; None ignores a window.
        attention, layer, model: arguments of `Attention`, `Layer` and `ModelConfig` that the family adds.
        mlp: of a layer; None is a dense one by `feed_forward_length`.
        activation: of a dense MLP.

    Raises:
        ModelFormatError: a missing or senseless value, or a feature that the families here do not have.
    """
    key, count = fields.key, fields.integer(fields.key("block_count"))
    check_layers(count)
    shape = heads(fields)
    head_dim = shape["head_dim"]
    _refuse_unsupported(fields, head_dim, reads)
    if fields.integer(key("expert_count"), 0) and mlp is None:
        raise ModelFormatError(f"{fields.where}: experts are not supported for {fields.architecture}")
    turned = fields.integer(key("rope.dimension_count"), head_dim)
    if not (0 < turned <= head_dim and turned % 2 == 0) or (turned != head_dim and not turns_part):
        expected = f"an even number up to {head_dim}" if turns_part else f"the head size {head_dim}"
        raise ModelFormatError(f"{fields.where}: {key('rope.dimension_count')} must be {expected}")
    full, local = rope_rules(
        fields,
        head_dim=head_dim,
        turned=turned,
        max_context=fields.integer(key("context_length")),
        scales_local=scales_local,
        local_theta=local_theta,
        truncate=truncate,
    )
    shape |= dict(attention or {})
    window, has = _windows(fields, count, sliding)
    attentions = {
        False: Attention(rope=full.rope, **shape),
        True: Attention(rope=local.rope, window=window, **shape),
    }
    mlps = (lambda _: dense(fields, activation)) if mlp is None else mlp
    return ModelConfig(
        family=family,
        vocab=fields.vocab,
        hidden=fields.integer(key("embedding_length")),
        layers=tuple(
            Layer(attention=attentions[has[number]], mlp=mlps(number), **(layer or {})) for number in range(count)
        ),
        # Stored as float32: its shortest decimal is the number that was meant, 1e-05 and not 9.99999974e-06.
        eps=meant(fields.number(key("attention.layer_norm_rms_epsilon"))),
        tied=fields.tied,
        **full.contexts(),
        **model,
    )


def heads(fields: GgufFields) -> dict[str, Any]:
    """Numbers and size of heads, as arguments of `Attention`."""
    key, hidden = fields.key, fields.integer(fields.key("embedding_length"))
    count = fields.per_layer("attention.head_count")
    if key("attention.key_length") not in fields and (count <= 0 or hidden % count):
        raise ModelFormatError(f"{fields.where}: embedding_length {hidden} must be a multiple of head_count {count}")
    head_dim = fields.integer(key("attention.key_length"), hidden // count if count > 0 else 0)
    if fields.integer(key("attention.value_length"), head_dim) != head_dim:
        raise ModelFormatError(f"{fields.where}: {key('attention.value_length')} must be the head size {head_dim}")
    found: dict[str, Any] = {
        "heads": count,
        "kv_heads": fields.per_layer("attention.head_count_kv", count),
        "head_dim": head_dim,
    }
    Attention(**found)  # refuses what is out of range before anything is computed from it
    return found


def biases(fields: GgufFields) -> dict[str, bool]:
    """Which biases of attention the file has, as arguments of `Attention`."""
    return {
        "bias": bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & fields.tensors),
        "output_bias": "blk.0.attn_output.bias" in fields.tensors,
    }


def dense(fields: GgufFields, activation: Activation = "silu") -> Mlp:
    """A dense MLP by `feed_forward_length`."""
    bias = "blk.0.ffn_down.bias" in fields.tensors
    return Mlp(width=fields.per_layer("feed_forward_length"), activation=activation, bias=bias)


def mixture(fields: GgufFields, *, width: str = "expert_feed_forward_length", **values: Any) -> Mlp:
    """A mixture of experts; `values` are other arguments of `Mlp`."""
    return Mlp(
        width=fields.per_layer(width),
        experts=fields.integer(fields.key("expert_count")),
        experts_used=fields.integer(fields.key("expert_used_count")),
        **values,
    )


def meant(value: float) -> float:
    """The decimal number that was meant by a float32: its shortest form."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def scale(fields: GgufFields, name: str, default: float) -> float:
    """A number that multiplies or divides something, as it was meant; `default` where it is absent or 0."""
    if not (value := fields.at_least_zero(fields.key(name), 0.0)):
        return default
    if not 0 < (found := meant(value)) < math.inf:
        raise fields.wrong(fields.key(name), "a positive number of 32 bits")
    return found


def attention_scale(fields: GgufFields, head_dim: int) -> float | None:
    """`attention.scale`; None where it is absent, 0 or the usual one."""
    value = scale(fields, "attention.scale", head_dim**-0.5)
    return None if math.isclose(value, head_dim**-0.5, rel_tol=1e-6) else value


def _windows(fields: GgufFields, count: int, sliding: Callable[[int], bool] | None) -> tuple[int | None, list[bool]]:
    """The sliding window, and whether each layer has it."""
    key = fields.key("attention.sliding_window")
    window = fields.integer(key, 0) if sliding is not None else 0
    if window < 0:
        raise fields.wrong(key, "a whole number of at least 0")
    if not window or sliding is None:
        return None, [False] * count
    stated = fields.flags(PATTERN, count)
    if stated is None and fields.key(PATTERN) in fields:
        period = fields.integer(fields.key(PATTERN))
        if period < 0:
            raise fields.wrong(fields.key(PATTERN), "a whole number of at least 0")
        # Every layer whose number is a multiple of it sees the whole context.
        stated = [period == 0 or number % period < period - 1 for number in range(count)]
    return window, stated or [sliding(number) for number in range(count)]


def _refuse_unsupported(fields: GgufFields, head_dim: int, reads: Collection[str]) -> None:
    for name, neutral in _NEUTRAL.items():
        key = fields.key(name)
        if name not in reads and key in fields and fields.values[key] != neutral:
            raise ModelFormatError(f"{fields.where}: {key} must be {neutral}, other values are not supported")
    for name in _NEVER:
        if fields.key(name) in fields:
            raise ModelFormatError(f"{fields.where}: {fields.key(name)} is not supported")
    key = fields.key("attention.scale")
    if "attention.scale" not in reads and attention_scale(fields, max(head_dim, 1)) is not None:
        raise ModelFormatError(f"{fields.where}: {key} must be 1/sqrt({head_dim}), not {fields.number(key):.6g}")
