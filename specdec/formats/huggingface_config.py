"""`config.json` of a Hugging Face folder, old and new keys, to a `ModelConfig`. Tensors: `huggingface_source`."""

from __future__ import annotations

from typing import Any

from specdec.errors import ModelFormatError
from specdec.formats.fields import Fields
from specdec.formats.rope import factors_from
from specdec.model.architecture import ARCHITECTURES, ModelConfig

# What the model classes take when config.json says nothing.
_DEFAULT_THETA = {"mixtral": 1e6}
_MISTRAL_WINDOW = 4096
_MAX_WINDOW_LAYERS = 28


def read_config(values: dict[str, Any], where: str) -> ModelConfig:
    """The model that a config.json describes.

    Args:
        values: the parsed file.
        where: its name, for messages.

    Raises:
        ModelFormatError: an unknown architecture, a missing or senseless value, or a feature that is not supported.
    """
    fields = Fields(values, where)
    architecture = _architecture(fields)
    _refuse_unsupported(fields, architecture)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if "head_dim" not in fields and (heads <= 0 or hidden % heads):
        raise ModelFormatError(f"{where}: hidden_size {hidden} must be a multiple of num_attention_heads {heads}")
    head_dim = fields.integer("head_dim", hidden // heads if heads > 0 else 0)
    layers = fields.integer("num_hidden_layers")
    theta, factors = _rope(fields, architecture, head_dim)
    window, first_sliding = _window(fields, architecture, layers)
    experts = architecture == "mixtral"
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps"),
        rope_theta=theta,
        max_context=fields.integer("max_position_embeddings"),
        rope_factors=factors,
        sliding_window=window,
        first_sliding_layer=first_sliding,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        num_experts=fields.integer("num_local_experts") if experts else 0,
        experts_per_token=fields.integer("num_experts_per_tok") if experts else 0,
    )


def _architecture(fields: Fields) -> str:
    model_type = fields.text("model_type")
    if model_type not in ARCHITECTURES:
        raise ModelFormatError(
            f"{fields.where}: unknown architecture {model_type!r}: this version reads {', '.join(ARCHITECTURES)}"
        )
    expected, classes = f"{model_type.capitalize()}ForCausalLM", fields.array("architectures")
    if classes and expected not in classes:
        raise ModelFormatError(f"{fields.where}: architectures must name {expected}, not {classes}")
    return model_type


def _refuse_unsupported(fields: Fields, architecture: str) -> None:
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
            raise ModelFormatError(f"{where}: {key} is not supported for {architecture}")
    for nested in (fields, fields.mapping("rope_parameters")):
        if (share := nested.number("partial_rotary_factor", 1.0)) != 1.0:
            raise ModelFormatError(f"{where}: partial_rotary_factor must be 1, not {share}")


def _rope(fields: Fields, architecture: str, head_dim: int) -> tuple[float, tuple[float, ...] | None]:
    """Base and divisors, from `rope_parameters` (new) or `rope_theta` and `rope_scaling` (old)."""
    rule = fields.mapping("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    if any(isinstance(value, dict) for value in rule.values.values()):
        raise ModelFormatError(f"{rule.where}: one rule per kind of layer is not supported")
    default = fields.number("rope_theta", _DEFAULT_THETA.get(architecture, 1e4))
    theta = rule.number("rope_theta", default)
    return theta, factors_from(rule, theta=theta, head_dim=head_dim)


def _window(fields: Fields, architecture: str, layers: int) -> tuple[int | None, int]:
    """Sliding window in tokens or None, and the first layer that has it."""
    window: int | None = fields.integer("sliding_window") if "sliding_window" in fields else None
    if architecture == "mistral" and "sliding_window" not in fields.values:
        window = _MISTRAL_WINDOW
    first = 0
    if architecture in ("qwen2", "qwen3"):
        if not fields.flag("use_sliding_window", False):
            window = None
        first = fields.integer("max_window_layers", _MAX_WINDOW_LAYERS)
    elif architecture == "llama":
        window = None
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
