"""What the Hugging Face folders of the families here have in common, old and new keys. Each states what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specdec.errors import ModelFormatError
from specdec.families.base import Places, Stored
from specdec.families.fields import Fields
from specdec.families.rope_huggingface import RopeDefaults, rope_rules
from specdec.model.architecture import ModelConfig, check_layers
from specdec.model.layers import Activation, Attention, Layer, Mlp

_LAYER = "model.layers.{layer}"
_PROJECTIONS = ("gate", "up", "down")
FULL, SLIDING = "full_attention", "sliding_attention"

# Norms, attention and what surrounds the layers.
ATTENTION: Places = {
    "embed": Stored("model.embed_tokens.weight"),
    "head": Stored("lm_head.weight"),
    "final_norm": Stored("model.norm.weight"),
    "attn_norm": Stored(f"{_LAYER}.input_layernorm.weight"),
    "mlp_norm": Stored(f"{_LAYER}.post_attention_layernorm.weight"),
} | {f"attn.{name}": Stored(f"{_LAYER}.self_attn.{name}_proj.weight") for name in "qkvo"}
BIASES: Places = {f"attn.{name}.bias": Stored(f"{_LAYER}.self_attn.{name}_proj.bias") for name in "qkvo"} | {
    f"mlp.{name}.bias": Stored(f"{_LAYER}.mlp.{name}_proj.bias") for name in _PROJECTIONS
}
MLP: Places = {f"mlp.{name}": Stored(f"{_LAYER}.mlp.{name}_proj.weight") for name in _PROJECTIONS}
FUSED_MLP: Places = {
    "mlp.gate": Stored(f"{_LAYER}.mlp.gate_up_proj.weight", among=("mlp.gate", "mlp.up")),
    "mlp.up": Stored(f"{_LAYER}.mlp.gate_up_proj.weight", among=("mlp.gate", "mlp.up")),
    "mlp.down": MLP["mlp.down"],
}
QK_NORMS: Places = {f"attn.{name}_norm": Stored(f"{_LAYER}.self_attn.{name}_norm.weight") for name in "qk"}
DENSE: Places = {**ATTENTION, **BIASES, **MLP}


def experts(base: str = f"{_LAYER}.mlp", names: Mapping[str, str] | None = None) -> Places:
    """Places of experts and their router: each by itself, stacked by mlp-lm's `switch_mlp`, or as transformers holds
    them, stacked and gates before ups.

    Args:
        base: what the names begin with.
        names: what the projections of a single expert are called.
    """
    among, fused = ("mlp.experts.gate", "mlp.experts.up"), f"{_LAYER}.mlp.experts.gate_up_proj"
    names = names or {name: f"{name}_proj" for name in _PROJECTIONS}
    last = {name: Stored(fused, among=among) for name in ("gate", "up")}
    last["down"] = Stored(f"{_LAYER}.mlp.experts.down_proj")
    found: dict[str, Stored | tuple[Stored, ...]] = {
        "mlp.router": (Stored(f"{base}.gate.weight"), Stored(f"{_LAYER}.mlp.gate.weight"))
    }
    for name in _PROJECTIONS:
        single = Stored(f"{base}.experts.{{expert}}.{names[name]}.weight")
        found[f"mlp.experts.{name}"] = (single, Stored(f"{base}.switch_mlp.{name}_proj.weight"), last[name])
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What transformers' class of a family takes where config.json says nothing, and which keys it knows.

    Attributes:
        context: longest context in tokens.
        rope: rotary positions.
        kv_heads: key-value heads; None is one for each query head, as is a number that does not divide them.
        head_dim: head size; None shares out the hidden size.
        eps: of norms.
        tied: the logits layer is the embedding table.
        activation: of the MLP, and its only one.
        bias: projections that `attention_bias` gives a bias; where none, the key must be false.
        has_bias: `attention_bias`.
        mlp_bias: whether the class knows `mlp_bias`.
        classes: its names in `architectures`; empty is the family's name with ForCausalLM.
    """

    context: int = 2048
    rope: RopeDefaults = field(default_factory=RopeDefaults)
    kv_heads: int | None = None
    head_dim: int | None = None
    eps: float = 1e-6
    tied: bool = False
    activation: Activation = "silu"
    bias: Literal["none", "qkv", "all"] = "none"
    has_bias: bool = False
    mlp_bias: bool = False
    classes: tuple[str, ...] = ()


_DEFAULTS = Defaults()


def decoder(
    fields: Fields,
    *,
    defaults: Defaults = _DEFAULTS,
    window: int | None = None,
    sliding: Callable[[int], bool] = lambda _: True,
    attention: Mapping[str, Any] | None = None,
    mlp: Callable[[int], Mlp] | None = None,
    layer: Mapping[str, Any] | None = None,
    **model: Any,
) -> ModelConfig:
    """The model that a config.json describes.

    Args:
        fields: the file.
        defaults: of the family; Llama's where it has none of its own.
        window: sliding window in tokens, or None.
        sliding: whether a layer has it, where `layer_types` says nothing else.
        attention, layer, model: arguments of `Attention`, `Layer` and `ModelConfig` that the family adds.
        mlp: of a layer; None is a dense one by `intermediate_size`.

    Raises:
        ModelFormatError: a missing or senseless value, or a feature that the families here do not have.
    """
    family = fields.text("model_type")
    _check_class(fields, defaults.classes or (f"{family.title().replace('_', '')}ForCausalLM",))
    _refuse_unsupported(fields, family, defaults)
    shape, count = _heads(fields, defaults), fields.integer("num_hidden_layers")
    biased = fields.flag("attention_bias", defaults.has_bias)
    shape |= {"bias": biased, "output_bias": biased and defaults.bias == "all"} | dict(attention or {})
    context = fields.integer("max_position_embeddings", defaults.context)
    full, local = rope_rules(fields, defaults.rope, head_dim=shape["head_dim"], max_context=context)
    kinds = layer_kinds(fields, count, window, sliding)
    attentions = {
        FULL: Attention(rope=full.rope, **shape),
        SLIDING: Attention(rope=local.rope, window=window, **shape),
    }
    dense = Mlp(width=fields.integer("intermediate_size"), activation=defaults.activation, bias=_mlp_bias(fields))
    layers = [
        Layer(attention=attentions[kind], mlp=dense if mlp is None else mlp(number), **(layer or {}))
        for number, kind in enumerate(kinds)
    ]
    return ModelConfig(
        family=family,
        vocab=fields.integer("vocab_size"),
        hidden=fields.integer("hidden_size"),
        layers=tuple(layers),
        eps=fields.number("rms_norm_eps", defaults.eps),
        tied=fields.flag("tie_word_embeddings", defaults.tied),
        **full.contexts(),
        **model,
    )


def mixture(fields: Fields, *, count: str | tuple[str, ...], width: str, **values: Any) -> Mlp:
    """A mixture of experts by the keys of a family.

    Args:
        fields: config.json.
        count: key of the number of experts; of several the first that is there.
        width: key of the inner width of an expert.
        values: other arguments of `Mlp`.
    """
    keys = (count,) if isinstance(count, str) else count
    key = next((key for key in keys if key in fields), keys[0])
    return Mlp(
        width=fields.integer(width),
        experts=_positive(fields, key),
        experts_used=fields.integer("num_experts_per_tok"),
        **values,
    )


def stated_window(fields: Fields) -> int | None:
    """`sliding_window`, or None where it is absent or null."""
    return fields.integer("sliding_window") if "sliding_window" in fields else None


def layer_kinds(
    fields: Fields, count: int, window: int | None, sliding: Callable[[int], bool]
) -> list[Literal["full_attention", "sliding_attention"]]:
    """Kind of attention of every layer, after what `layer_types` says.

    Raises:
        ModelFormatError: kinds that are not read, of another number of layers, or a window is missing or senseless.
    """
    check_layers(count)
    stated = fields.array("layer_types")
    if stated and (len(stated) != count or any(kind not in (FULL, SLIDING) for kind in stated)):
        unknown = sorted({str(kind) for kind in stated} - {FULL, SLIDING})
        other = f": {', '.join(unknown)[:80]} is not supported" if unknown else ""
        raise ModelFormatError(
            f"{fields.where}: layer_types must name full_attention or sliding_attention for each of {count} layers"
            f"{other}"
        )
    has = [kind == SLIDING for kind in stated] if stated else [window is not None and sliding(n) for n in range(count)]
    if any(has) and window is None:
        raise ModelFormatError(f"{fields.where}: layer_types has sliding_attention, but there is no sliding_window")
    if any(has) and window is not None and window <= 0:
        raise fields.wrong("sliding_window", "a positive whole number")
    return [SLIDING if one else FULL for one in has]


def _heads(fields: Fields, defaults: Defaults) -> dict[str, Any]:
    """Numbers and size of heads, as arguments of `Attention`."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if "head_dim" not in fields and defaults.head_dim is None and (heads <= 0 or hidden % heads):
        raise ModelFormatError(
            f"{fields.where}: hidden_size {hidden} must be a multiple of num_attention_heads {heads}"
        )
    head_dim = fields.integer("head_dim", defaults.head_dim or (hidden // heads if heads > 0 else 0))
    usual = heads if defaults.kv_heads is None or heads % defaults.kv_heads else defaults.kv_heads
    return {"heads": heads, "kv_heads": fields.integer("num_key_value_heads", usual), "head_dim": head_dim}


def _mlp_bias(fields: Fields) -> bool:
    return fields.flag("mlp_bias", False)


def _positive(fields: Fields, key: str) -> int:
    if (value := fields.integer(key)) <= 0:
        raise fields.wrong(key, "a positive whole number")
    return value


def _check_class(fields: Fields, expected: tuple[str, ...]) -> None:
    def plain(name: object) -> str:
        return str(name).lower()

    classes = fields.array("architectures")
    if classes and not {plain(name) for name in classes} & {plain(name) for name in expected}:
        raise ModelFormatError(f"{fields.where}: architectures must name {' or '.join(expected)}, not {classes}")


def _refuse_unsupported(fields: Fields, family: str, defaults: Defaults) -> None:
    where = fields.where
    if "quantization_config" in fields and "quantization" not in fields:
        method = fields.mapping("quantization_config").values.get("quant_method", "unnamed")
        if method != "mxfp4":
            raise ModelFormatError(
                f"{where}: the weights are quantised (quantization_config: {method}), and only MLX's and GGUF's own "
                "types and MXFP4 are read: convert the 16-bit original"
            )
    named = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "clamped_swiglu": "silu"}[defaults.activation]
    key = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    if (activation := fields.text(key, named)) != named:
        raise ModelFormatError(f"{where}: {key} must be {named!r}, not {activation!r}")
    for key, known in (("attention_bias", defaults.bias != "none"), ("mlp_bias", defaults.mlp_bias)):
        if fields.flag(key, False) and not known:
            raise ModelFormatError(f"{where}: {key} is not supported for {family}")
