"""Sizes that are constants in the source of one-kernel steps; sizes of a step's memory are in `step`."""

from __future__ import annotations

import os

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.kernels import Constant
from specdec.runtimes.mlx.pack import LINE, padded

THREADS = 512  # threads of a block
MOST_CHOOSING = 8  # rows of a step that take whole inputs of 16-bit weights: sums of more do not fit
ARRIVALS = 64  # offset of the counters of blocks, after the barrier's
ROW_GAP = 32  # inputs between rows in shared memory, which lie in different banks then
SHORT_BYTES = 64 << 10  # most float32 bytes of rows that each block reads: more take longer than a grid barrier
_TRIED = {"STEP_AHEAD": 0, "STEP_UNROLL": 4}
MIXED_BYTES = 96 << 10  # the same of splits of attention
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
    """Counters of the blocks that have added to 16 inputs of a row, or to 128."""
    return (padded(config.hidden_size) + padded(config.intermediate_size)) // 16


def dense_rows(config: ModelConfig, rows: int, *, split: int, grid: int, shared_bytes: int) -> dict[str, Constant]:
    """How rows at effort 1 get to a block's multiplications: where they are short, each block makes all of them itself.

    Args:
        config: of the model.
        rows: of the kernel.
        split: parts of an activation.
        grid: blocks.
        shared_bytes: shared memory of a block that is left for rows, attention, and sums.

    Returns:
        OWN_BYTES: shared memory for rows. OWN_ROWS: whether several are made by each block (`step_own_rows.cu`); then
        also ROW_GAP, and MOST_MIXED, the most splits of attention that each block reads.
    """
    tried: dict[str, Constant] = {name: int(os.environ.get(f"SPECDEC_{name}", value)) for name, value in _TRIED.items()}
    if rows == 1:
        return tried | {"OWN_ROWS": False, "ROW_GAP": 0, "OWN_BYTES": 2 * split * widest_row(config)}
    mixed = padded(config.num_heads * config.head_dim)
    own = 2 * split * rows * (max(padded(config.hidden_size), mixed) + ROW_GAP)
    tiles = 2 * padded(config.intermediate_size) // 16 // grid + 3  # of a block, at most
    rest = max(attention_bytes(rows, config.head_dim), exchange_bytes(rows, 16))
    short = int(os.environ.get("SPECDEC_SHORT_BYTES", SHORT_BYTES))
    if 4 * rows * config.hidden_size > short or own + padded(rest, 16) > shared_bytes or tiles > ARRIVALS:
        return tried | {"OWN_ROWS": False, "ROW_GAP": 0, "OWN_BYTES": 0}
    steps = mixed // 32
    taken = min(steps, -(-config.hidden_size // 16) * steps // grid + 1)  # steps of a block's share
    made: dict[str, Constant] = {"OWN_ROWS": True, "ROW_GAP": ROW_GAP, "OWN_BYTES": own}
    return tried | made | {"MOST_MIXED": MIXED_BYTES // (128 * taken)}


def exchange_bytes(rows: int, tile: int) -> int:
    """Shared memory of a block for sums of its warps."""
    return 4 * 2 * (THREADS // 32) * rows * tile


def attention_bytes(rows: int, size: int) -> int:
    """Shared memory of a block for attention."""
    warps = THREADS // 32
    return 4 * (warps * size + rows * size * 2 + -(-rows // 4) * warps * (size + 2))
