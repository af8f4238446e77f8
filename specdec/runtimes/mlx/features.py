"""What the GPU kernels do not execute of a model."""

from __future__ import annotations

from specdec.model.architecture import ModelConfig
from specdec.model.features import Feature, features_of
from specdec.runtimes.mlx.pack import BUCKET

# Features beyond the plain decoder.
_EXECUTES = frozenset({Feature.ROPE_FACTORS, Feature.ROPE_ATTENTION, Feature.WINDOW, Feature.QKV_BIAS, Feature.QK_NORM})
_MOST_HEAD = 128
_HEAD_STEP = 8


def missing_features(config: ModelConfig) -> frozenset[str]:
    """Features and shapes of the model that the kernels do not execute, by name."""
    found: set[str] = set(features_of(config) - _EXECUTES)
    for attention in (layer.attention for layer in config.kinds):
        if attention.head_dim > _MOST_HEAD:
            found.add(f"heads of more than {_MOST_HEAD}")
        if attention.head_dim % _HEAD_STEP:
            found.add(f"heads of a size that {_HEAD_STEP} does not divide")
        if attention.query_width % BUCKET or attention.kv_width % BUCKET:
            found.add(f"projections of a width that {BUCKET} does not divide")
    return frozenset(found)
