"""What the GPU kernels execute of a model, and which of them run it."""

from __future__ import annotations

from specdec.model.architecture import ModelConfig
from specdec.model.features import Feature, features_of
from specdec.runtimes.mlx.pack import BUCKET

# Beyond the plain decoder: what a step as one kernel executes, and what kernels for each phase do beside that.
_ONE_KERNEL = frozenset(
    {Feature.ROPE_FACTORS, Feature.ROPE_ATTENTION, Feature.WINDOW, Feature.QKV_BIAS, Feature.QK_NORM}
)
_PHASES = _ONE_KERNEL | {
    Feature.ROPE_SHARE,
    Feature.ROPE_INTERLEAVED,
    Feature.ROPE_NONE,
    Feature.MIXED_ROPE,
    Feature.MIXED_SHAPES,
    Feature.QK_NORM_FULL,
    Feature.SCALE,
    Feature.SOFTCAP,
    Feature.SINKS,
    Feature.GATE,
    Feature.GROWTH,
    Feature.OUTPUT_BIAS,
    Feature.ROUTER_BIAS,
    Feature.GELU,
    Feature.CLAMPED,
    Feature.MLP_BIAS,
    Feature.MIXTURE,
    Feature.ROUTER,
    Feature.SHARED,
    Feature.POST_NORMS,
    Feature.RESIDUAL_SCALE,
    Feature.NORM_OFFSET,
    Feature.EMBED_SCALE,
    Feature.LOGIT_SCALE,
    Feature.LOGIT_CAP,
}
_MOST_HEAD = 256
_MOST_HEAD_ONE_KERNEL = 128
_HEAD_STEP = 8
_MOST_EXPERTS = 1024


def runs_as_one_kernel(config: ModelConfig) -> bool:
    """Whether the kernels of `step`, which run a whole step each, execute the model; else those of `phases` do."""
    heads = [layer.attention.head_dim for layer in config.kinds]
    return features_of(config) <= _ONE_KERNEL and max(heads) <= _MOST_HEAD_ONE_KERNEL


def missing_features(config: ModelConfig) -> frozenset[str]:
    """Features and shapes of the model that the kernels do not execute, by name."""
    found: set[str] = set(features_of(config) - _PHASES)
    for attention in (layer.attention for layer in config.kinds):
        if attention.head_dim > _MOST_HEAD:
            found.add(f"heads of more than {_MOST_HEAD}")
        if attention.head_dim % _HEAD_STEP:
            found.add(f"heads of a size that {_HEAD_STEP} does not divide")
        if attention.query_width % BUCKET or attention.kv_width % BUCKET:
            found.add(f"projections of a width that {BUCKET} does not divide")
    if max(layer.mlp.experts for layer in config.kinds) > _MOST_EXPERTS:
        found.add(f"mixtures of more than {_MOST_EXPERTS} experts")
    return frozenset(found)
