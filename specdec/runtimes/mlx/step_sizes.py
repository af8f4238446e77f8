"""Sizes that are constants in the source of one-kernel steps; sizes of a step's memory are in `step`."""

from __future__ import annotations

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.kernels import Constant
from specdec.runtimes.mlx.pack import LINE, padded

THREADS = 512  # threads of a block
MOST_CHOOSING = 8  # rows of a step that take whole inputs of 16-bit weights: sums of more do not fit
ARRIVALS = 64  # offset of the counters of blocks, after the barrier's
_UNITS_EACH = 8  # fewest units of a block, except for the last of a matrix: its warps take them at the same time


def model_sizes(config: ModelConfig) -> dict[str, Constant]:
    """Sizes of a model; outputs of joined matrices follow each other, gates and ups in turn by 16."""
    c, mixed = config, config.num_heads * config.head_dim
    sizes: dict[str, Constant] = {"LAYERS": c.num_layers, "VOCAB": c.vocab_size}
    sizes |= {"HIDDEN": c.hidden_size, "HIDDEN_PAD": padded(c.hidden_size), "MIXED": mixed}
    sizes |= {"MIXED_PAD": padded(mixed), "INNER": c.intermediate_size, "INNER_PAD": padded(c.intermediate_size)}
    sizes |= {"HEADS": c.num_heads, "KV_HEADS": c.num_kv_heads, "SIZE": c.head_dim, "SCALE": c.head_dim**-0.5}
    sizes |= {"BIAS": c.qkv_bias, "QK_NORM": c.qk_norm, "EPSILON": float(c.norm_eps), "TIED": c.tie_embeddings}
    return sizes | {"PAIR": 16, "KEYS_AT": mixed, "VALUES_AT": mixed + c.num_kv_heads * c.head_dim}


def verify_stage_bytes(rows: int, *, split: int) -> int:
    """Shared memory of a stage of a warp's ring in `verify`: weights, their tiers, rows and their counts."""
    held = max(8, rows)
    return 2 * (1024 + 128) + held * 64 * split + 2 * held * 32


def widest_row(config: ModelConfig) -> int:
    """Inputs of the widest multiplication, padded."""
    mixed = config.num_heads * config.head_dim
    return max(padded(config.hidden_size), padded(mixed), padded(config.intermediate_size))


def lines_constants(config: ModelConfig) -> dict[str, Constant]:
    """Offsets of the outputs of joined matrices, at whole lines, gates and ups alternating by a line; and the fewest
    units of a block."""
    keys = padded(config.num_heads * config.head_dim, LINE)
    values = keys + padded(config.num_kv_heads * config.head_dim, LINE)
    return {"PAIR": LINE, "KEYS_AT": keys, "VALUES_AT": values, "UNITS_EACH": _UNITS_EACH}


def own_places(config: ModelConfig, *, split: int) -> dict[str, Constant]:
    """Byte offsets of the inputs that a block chooses from a single row, in joined matrices, a bit for each.

    Args:
        config: of the model.
        split: parts of an activation.
    """
    most = max(3 * padded(config.hidden_size), widest_row(config))  # inputs of joined matrices together
    words = 2 * split * most
    return {"OWN_WORDS_AT": words, "OWN_BYTES": words + padded(most // 8, 16)}


def arrivals(config: ModelConfig) -> int:
    """Counters of the blocks that have added to 128 inputs of a row."""
    return (padded(config.hidden_size) + padded(config.intermediate_size)) // 128


def attention_bytes(rows: int, size: int) -> int:
    """Shared memory of a block for attention."""
    warps = THREADS // 32
    return 4 * (warps * size + rows * size * 2 + -(-rows // 4) * warps * (size + 2))
