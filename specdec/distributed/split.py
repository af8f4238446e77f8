"""What dividing a model costs: gathers of the outputs of matrices, or rows on their way through stages.

The estimate is for one row, as decoding has it; docs/distributed.md derives it and compares it with measurements.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from specdec.model.architecture import ModelConfig

if TYPE_CHECKING:
    from specdec.distributed.leader import Leader
    from specdec.store import Store

GATHERS = 4  # of a layer: after attention, its output projection, the inner width and the MLP
_PROBES = 20
_SLOW_S = 1e-3  # of a gather: any local network is faster
_COPIED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How fast ranks reach each other.

    Attributes:
        latency_s: of a gather of next to nothing.
        bytes_per_s: of one direction.
    """

    latency_s: float
    bytes_per_s: float


def gathered_bytes(config: ModelConfig, *, value_bytes: int = 4) -> int:
    """Bytes of all rows that are put together in a pass of one row: what every rank has to have in the end."""
    layers = sum(one.attention.query_width + 2 * config.hidden + _inner(one.mlp) for one in config.layers)
    return value_bytes * (layers + config.hidden + config.vocab)


def gathers_of(config: ModelConfig) -> int:
    """Gathers in a pass: four a layer, one more for each further MLP of a mixture that a row uses, and two for
    embeddings and logits."""
    more = sum(max(0, one.mlp.experts_used + bool(one.mlp.shared_width) - 1) for one in config.layers)
    return GATHERS * config.num_layers + more + 2


def outputs_s(config: ModelConfig, alone_s: float, ranks: int, link: Link) -> float:
    """Seconds of a pass of one row with outputs divided: each rank's share of what one device takes, and the gathers.

    A ring passes (ranks - 1) / ranks of what is gathered over every link.
    """
    moved = gathered_bytes(config) * (ranks - 1) / ranks / link.bytes_per_s
    return alone_s / ranks + gathers_of(config) * link.latency_s * (ranks > 1) + moved


def layers_s(config: ModelConfig, alone_s: float, ranks: int, link: Link) -> float:
    """Seconds of a pass of one row through layers in stages: what one device takes, and a row for every rank."""
    moved = 4 * (config.hidden * (ranks - 1) + config.vocab) / link.bytes_per_s
    return alone_s + ranks * link.latency_s * (ranks > 1) + moved * (ranks > 1)


def chosen_split(wanted: str, store: Store, leader: Leader, *, stages: bool) -> str:
    """ "outputs" or "layers": what was asked for, or for "auto" what the measured latency makes faster.

    Outputs are divided unless a gather takes over a millisecond and stages are estimated to be faster.

    Args:
        wanted: "auto", "outputs" or "layers".
        store: of the model.
        leader: measures the latency.
        stages: the runtime can run layers in stages.
    """
    group, config = leader.group, store.config
    if wanted != "auto":
        return wanted
    if not stages or group.ranks == 1 or group.backend == "nccl" or group.ranks > config.num_layers:
        return "outputs"
    latency_s = leader.gather_s(config.hidden // group.ranks, _PROBES)
    if latency_s < _SLOW_S:
        return "outputs"
    link = Link(latency_s=latency_s, bytes_per_s=1e12)
    alone_s = sum(store.part_bytes().values()) / _memory_bytes_per_s()
    return min(
        ("outputs", outputs_s), ("layers", layers_s), key=lambda way: way[1](config, alone_s, group.ranks, link)
    )[0]


def _memory_bytes_per_s() -> float:
    """What one thread reads of memory, about."""
    array = np.ones(_COPIED_BYTES // 4, np.float32)
    array.sum()
    start = time.perf_counter()
    array.sum()
    return _COPIED_BYTES / (time.perf_counter() - start)


def _inner(mlp: object) -> int:
    width, used, shared = (int(getattr(mlp, name)) for name in ("width", "experts_used", "shared_width"))
    return width * max(1, used) + shared
