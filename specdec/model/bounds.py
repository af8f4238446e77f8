"""Bounds on the shape of a model that a file describes, checked before anything is made or run by it."""

from __future__ import annotations

import math

from specdec.errors import ModelFormatError
from specdec.model.architecture import ModelConfig

# Far above every model, and low enough that counting what a model would have takes no time.
_MOST = {
    "vocab_size": 1 << 24, "hidden_size": 1 << 20, "intermediate_size": 1 << 22, "num_layers": 4096,
    "num_heads": 1 << 16, "num_kv_heads": 1 << 16, "head_dim": 1 << 16, "max_context": (1 << 31) - 1,
    "sliding_window": (1 << 31) - 1, "first_sliding_layer": 4096, "num_experts": 4096, "experts_per_token": 4096,
}  # fmt: skip
_MOST_EXPERTS = 1 << 16  # of all layers
_FLAGS = ("tie_embeddings", "qkv_bias", "qk_norm")


def check_bounds(config: ModelConfig) -> ModelConfig:
    """`config`, if every value is of its kind and within bounds.

    Raises:
        ModelFormatError: one is not.
    """
    for name, most in _MOST.items():
        value = getattr(config, name)
        if name == "sliding_window" and value is None:
            continue
        if type(value) is not int or not 0 <= value <= most or (name == "sliding_window" and value == 0):
            raise ModelFormatError(f"{name} must be a whole number of at most {most}, not {str(value)[:40]}")
    for name in ("norm_eps", "rope_theta"):
        _check_number(name, getattr(config, name))
    for value in config.rope_factors or ():
        _check_number("a rope factor", value)
    for name in _FLAGS:
        if type(getattr(config, name)) is not bool:
            raise ModelFormatError(f"{name} must be true or false, not {str(getattr(config, name))[:40]}")
    if config.num_layers * config.num_experts > _MOST_EXPERTS:
        raise ModelFormatError(f"{config.num_layers} layers of {config.num_experts} experts are too many")
    return config


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e30 or math.isnan(value):
        raise ModelFormatError(f"{name} must be a positive number of at most 1e30, not {str(value)[:40]}")
