"""What the Hugging Face folders of the families here have in common, old and new keys. Each states what differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdec.errors import ModelFormatError
from specdec.families.base import Stored
from specdec.families.fields import Fields
from specdec.families.rope_huggingface import rope_rule
from specdec.model.architecture import ModelConfig

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Norms, attention and what surrounds the layers.
ATTENTION = {
    "embed": Stored(EMBED),
    "head": Stored(HEAD),
    "final_norm": Stored("model.norm.weight"),
    "attn_norm": Stored("model.layers.{layer}.input_layernorm.weight"),
    "mlp_norm": Stored("model.layers.{layer}.post_attention_layernorm.weight"),
} | {f"attn.{name}": Stored(f"model.layers.{{layer}}.self_attn.{name}_proj.weight") for name in "qkvo"}
MLP = {f"mlp.{name}": Stored(f"model.layers.{{layer}}.mlp.{name}_proj.weight") for name in ("gate", "up", "down")}
QKV_BIASES = {f"attn.{name}.bias": Stored(f"model.layers.{{layer}}.self_attn.{name}_proj.bias") for name in "qkv"}
QK_NORMS = {f"attn.{name}_norm": Stored(f"model.layers.{{layer}}.self_attn.{name}_norm.weight") for name in "qk"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What transformers' class of a family takes where config.json says nothing.

    Attributes:
        context: longest context in tokens.
        theta: base of the rotary frequencies.
        kv_heads: key-value heads; None is one for each query head, as is a number that does not divide them.
        head_dim: head size; None shares out the hidden size.
        eps: of norms.
    """

    context: int = 2048
    theta: float = 1e4
    kv_heads: int | None = None
    head_dim: int | None = None
    eps: float = 1e-6


_DEFAULTS = Defaults()


def decoder(
    fields: Fields,
    *,
    defaults: Defaults = _DEFAULTS,
    window: int | None = None,
    first_sliding: int = 0,
    **features: Any,
) -> ModelConfig:
    """The model that a config.json describes.

    Args:
        fields: the file.
        defaults: of the family; Llama's where it has none of its own.
        window: sliding window in tokens, or None.
        first_sliding: first layer that has it, where `layer_types` says nothing else.
        features: arguments of `ModelConfig.uniform` that the family adds.

    Raises:
        ModelFormatError: a missing or senseless value, or a feature that the families here do not have.
    """
    family = fields.text("model_type")
    _check_class(fields, family)
    _refuse_unsupported(fields, family)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if "head_dim" not in fields and defaults.head_dim is None and (heads <= 0 or hidden % heads):
        raise ModelFormatError(
            f"{fields.where}: hidden_size {hidden} must be a multiple of num_attention_heads {heads}"
        )
    head_dim = fields.integer("head_dim", defaults.head_dim or (hidden // heads if heads > 0 else 0))
    kv_heads = heads if defaults.kv_heads is None or heads % defaults.kv_heads else defaults.kv_heads
    layers = fields.integer("num_hidden_layers")
    context = fields.integer("max_position_embeddings", defaults.context)
    rope = rope_rule(fields, theta=defaults.theta, head_dim=head_dim, max_context=context)
    window, first_sliding = _checked_window(fields, window, first_sliding, layers)
    return ModelConfig.uniform(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", kv_heads),
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", defaults.eps),
        **rope.arguments(),
        sliding_window=window,
        first_sliding_layer=first_sliding,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        **features,
    )


def stated_window(fields: Fields) -> int | None:
    """`sliding_window`, or None where it is absent or null."""
    return fields.integer("sliding_window") if "sliding_window" in fields else None


def _check_class(fields: Fields, family: str) -> None:
    expected, classes = f"{family.capitalize()}ForCausalLM", fields.array("architectures")
    if classes and expected not in classes:
        raise ModelFormatError(f"{fields.where}: architectures must name {expected}, not {classes}")


def _refuse_unsupported(fields: Fields, family: str) -> None:
    where = fields.where
    if "quantization_config" in fields and "quantization" not in fields:
        method = fields.mapping("quantization_config").values.get("quant_method", "unnamed")
        raise ModelFormatError(
            f"{where}: the weights are quantised (quantization_config: {method}), and only MLX's and GGUF's own types "
            "are read: convert the 16-bit original"
        )
    if (activation := fields.text("hidden_act", "silu")) != "silu":
        raise ModelFormatError(f"{where}: hidden_act must be 'silu', not {activation!r}")
    for key in ("attention_bias", "mlp_bias"):
        if fields.flag(key, False):
            raise ModelFormatError(f"{where}: {key} is not supported for {family}")
    for nested in (fields, fields.mapping("rope_parameters"), fields.mapping("rope_scaling")):
        if (share := nested.number("partial_rotary_factor", 1.0)) != 1.0:
            raise ModelFormatError(f"{where}: partial_rotary_factor must be 1, not {share}")


def _checked_window(fields: Fields, window: int | None, first: int, layers: int) -> tuple[int | None, int]:
    """Window and first layer that has it, after what `layer_types` says."""
    kinds = fields.array("layer_types")
    if kinds:
        first = _first_sliding(kinds, fields, layers)
        window = window if first < layers else None
        if window is None and first < layers:
            raise ModelFormatError(f"{fields.where}: layer_types has sliding_attention, but there is no sliding_window")
    if window is None or first >= layers:
        return None, 0
    if window <= 0:
        raise fields.wrong("sliding_window", "a positive whole number")
    return window, first


def _first_sliding(kinds: list[Any], fields: Fields, layers: int) -> int:
    """The layer from which all are sliding; the ones before must all be full."""
    first = kinds.index("sliding_attention") if "sliding_attention" in kinds else len(kinds)
    if len(kinds) != layers or kinds != ["full_attention"] * first + ["sliding_attention"] * (len(kinds) - first):
        raise ModelFormatError(
            f"{fields.where}: layer_types must name full_attention layers followed by sliding_attention layers, "
            f"{layers} in all"
        )
    return first
