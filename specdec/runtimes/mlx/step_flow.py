"""Sizes of the step in one kernel through which 4-bit weights flow: `kernels/cuda/step/step_flow.cu`."""

from __future__ import annotations

import os

from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.kernels import Constant
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.step_sizes import THREADS, widest_row

FLOW_VARIABLE = "SPECDEC_INT4_FLOW"
FLOW_THREADS = THREADS + 32  # a thread of one warp more asks for weights
FLOW_PARTS = (
    *("step_team.cuh", "step_grid.cuh", "step_rows.cuh", "step_choice.cuh", "step_attention.cuh"),
    *("step_choose.cuh", "step_recycle.cuh", "step_flow.cuh"),
)
_UNIT_INPUTS, _UNIT_BYTES = 256, 2304  # of a tile of 16 outputs: nibbles, and a scale for each 32 inputs and output
_CHUNK_UNITS = 8  # units that are asked for together
_CHUNKS_UNDER_WAY = 4  # more at once delay what the blocks wait for
_SUMS = 256  # units whose sums a block keeps, at least two tiles'
_SPAN = 128  # positions that the warps of a block attend to at a time
_SHARED_BYTES = 227 << 10
_MOST_FIXED = 256  # bytes for each layer, at least, in front of what is laid out here


def wants_flow() -> bool:
    """Whether the user has asked for such steps, which have run on a GPU for one shape only.

    Raises:
        InvalidArgumentError: the variable of the environment has another value than 0 or 1.
    """
    text = os.environ.get(FLOW_VARIABLE, "0")
    if text not in ("0", "1"):
        raise InvalidArgumentError(f"{FLOW_VARIABLE} must be 0 or 1, not {text!r}")
    return text == "1"


def flow_fits(config: ModelConfig) -> bool:
    """Whether a block has room for the rows of a model and two chunks of weights."""
    return int(flow_sizes(config, _MOST_FIXED * config.num_layers, 1)[0]["CHUNKS"]) >= 2


def flow_sizes(config: ModelConfig, fixed_bytes: int, grid: int) -> tuple[dict[str, Constant], int]:
    """Constants of the kernel's text, and bytes of shared memory.

    Args:
        config: of the model.
        fixed_bytes: of shared memory in front of what is laid out here.
        grid: blocks.
    """
    c, mixed = config, config.num_heads * config.head_dim
    kv = c.num_kv_heads * c.head_dim
    tiles = [-(-(mixed + 2 * kv) // 16), -(-c.hidden_size // 16), 2 * -(-c.intermediate_size // 16)]
    tiles += [-(-c.hidden_size // 16), -(-c.vocab_size // 16)]
    wide = [padded(count, _UNIT_INPUTS) for count in (c.hidden_size, mixed, c.hidden_size, c.intermediate_size)]
    steps = [count // _UNIT_INPUTS for count in (*wide, wide[0])]
    widest = padded(widest_row(c), _UNIT_INPUTS)
    sizes: dict[str, Constant] = {"CHUNK_UNITS": _CHUNK_UNITS, "WIDEST": widest, "SPAN": _SPAN}
    sizes |= {"HIDDEN_WIDE": wide[0], "MIXED_WIDE": wide[1], "INNER_WIDE": wide[3]}
    sizes |= {"TILE_COUNTS": ", ".join(map(str, tiles)), "STEP_COUNTS": ", ".join(map(str, steps))}
    sizes["MOST_UNITS"] = most = max(_SUMS, 2 * max(steps))
    attention = 4 * (THREADS // 32 * (c.head_dim + 2) + 2 * c.head_dim)
    fixed = fixed_bytes + 4 * 64 + widest // 32 * 8 + 2 * (widest + 32) + max(64 * most, attention)
    chunks = (_SHARED_BYTES - fixed - 128) // (_CHUNK_UNITS * _UNIT_BYTES + 16)
    sizes["RING_AT"] = ring = padded(fixed + 16 * chunks, 128)
    sizes |= {"CHUNKS": chunks, "FLIGHT": min(chunks, _CHUNKS_UNDER_WAY)}
    sizes |= flow_exchange(config, grid)[0]
    return sizes, ring + chunks * _CHUNK_UNITS * _UNIT_BYTES


def flow_exchange(config: ModelConfig, grid: int) -> tuple[dict[str, int], int]:
    """Places of what `grid` blocks tell each other, in words of memory that nothing else uses, and words in all."""
    c = config
    mixed, qkv = c.num_heads * c.head_dim, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    attended = max(mixed, c.num_heads * max(1, grid // c.num_heads) * (c.head_dim + 4))
    numbers = {"FROM_QKV": qkv, "FROM_OUT": c.hidden_size, "FROM_DOWN": c.hidden_size, "FROM_ATTENDED": attended}
    numbers["FROM_INNER"] = padded(c.intermediate_size, 16) // 2
    places, place = dict[str, int](), 64
    for name, count in numbers.items():
        places[name] = place
        place += 2 * padded(count, 32)
    return places, place
