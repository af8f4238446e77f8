"""Bounds on the shape of a model that a file describes, checked before anything is made or run by it."""

from __future__ import annotations

from specdec.errors import ModelFormatError
from specdec.model.architecture import ModelConfig
from specdec.model.layers import Layer, Rope

MOST_CONTEXT = (1 << 31) - 1
_LARGEST = 1e30  # of a number
_MOST_EXPERTS = 1 << 16  # of all layers


def check_bounds(config: ModelConfig) -> ModelConfig:
    """`config`, if every size and number is within bounds: far above every model, and low enough that counting what a
    model would have takes no time.

    Raises:
        ModelFormatError: one is not.
    """
    _check_sizes({"vocab_size": (config.vocab, 1 << 24), "hidden_size": (config.hidden, 1 << 20)})
    _check_sizes({name: (getattr(config, name) or 0, MOST_CONTEXT) for name in ("max_context", "longest_context")})
    for name in ("eps", "embed_scale", "logit_scale"):
        _check_number(name, getattr(config, name))
    if config.logit_cap is not None:
        _check_number("logit_cap", config.logit_cap)
    for layer in set(config.layers):
        _check_layer(layer)
    experts = sum(layer.mlp.experts for layer in config.layers)
    if experts > _MOST_EXPERTS:
        raise ModelFormatError(f"{config.num_layers} layers with {experts} experts are too many")
    return config


def _check_layer(layer: Layer) -> None:
    attention, mlp = layer.attention, layer.mlp
    _check_sizes(
        {
            "num_heads": (attention.heads, 1 << 16),
            "num_kv_heads": (attention.kv_heads, 1 << 16),
            "head_dim": (attention.head_dim, 1 << 16),
            "sliding_window": (attention.window or 0, (1 << 31) - 1),
            "intermediate_size": (mlp.width, 1 << 22),
            "num_experts": (mlp.experts, 4096),
            "shared_width": (mlp.shared_width, 1 << 22),
        }
    )
    _check_rope(attention.rope)
    _check_number("residual_scale", layer.residual_scale)
    for name, value in (("the scale of scores", attention.scale), ("the softcap of scores", attention.softcap)):
        if value is not None:
            _check_number(name, value)
    if attention.growth:
        _check_number("the growth of scores", attention.growth)


def _check_rope(rope: Rope) -> None:
    _check_number("rope_theta", rope.theta)
    _check_number("the attention factor", rope.attention_factor)
    factors = rope.factors or ()
    if rope.scaling is not None:
        _check_sizes({"the original context": (rope.scaling.original, MOST_CONTEXT)})
        factors += (rope.scaling.factor, *rope.scaling.short, *rope.scaling.long)
    for factor in factors:
        _check_number("a rope factor", factor)


def _check_sizes(sizes: dict[str, tuple[int, int]]) -> None:
    for name, (value, most) in sizes.items():
        if value > most:
            raise ModelFormatError(f"{name} must be a whole number of at most {most}, not {str(value)[:40]}")


def _check_number(name: str, value: float) -> None:
    if not 0 < value <= _LARGEST:
        raise ModelFormatError(f"{name} must be a positive number of at most {_LARGEST:g}, not {str(value)[:40]}")
