"""Steps of a 7B-shaped model with random weights on several GPUs beside one: times, and logits bit for bit.

Each rank makes the same random matrices and keeps its outputs of them. One kernel for a step and a kernel for each
phase give the same bits at any number of ranks. Both are timed, and on one GPU the step that is used there without
ranks, too. Ratios are to the fastest of those on one GPU.

    python benchmarks/distributed_shape.py --ranks 1,2 --json results/distributed_shape-DEVICE.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from common import add_json_option, print_table, write_json
from launched import launched

if TYPE_CHECKING:
    from specdec.runtimes.mlx.model import Transformer

CASES = (("dense", 1), ("dense", 5), ("dense", 16), ("int4", 1))
VALUES = (1024, 4096, 14336)  # of a row that is gathered, float16
CHAIN = 64  # gathers one after the other in a graph
WAYS = ("one kernel", "phases", "without ranks")


def main() -> None:
    """Run every number of ranks, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--backend", help="of MLX (default: what specdec launch takes)")
    parser.add_argument("--layers", type=int, default=32, help="blocks (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=30, help="steps of each kind (default %(default)s)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.inside:
        measure(arguments)
        return
    found = {ranks: _launched(arguments, ranks) for ranks in arguments.ranks}
    first = next(iter(found.values()))
    best = {name: min(took for took, _ in ways.values()) for name, ways in first["steps_s"].items()}
    rows = [
        (ranks, name, way, took * 1e3, spread, took / best[name], _is_equal(first, one, name, way))
        for ranks, one in found.items()
        for name, ways in one["steps_s"].items()
        for way, (took, spread) in ways.items()
    ]
    print_table(("ranks", "step", "way", "ms", "spread", "of one GPU", "equal bits"), rows)
    for ranks, one in found.items():
        times = ", ".join(f"{size} values {1e6 * took:.1f} us" for size, took in one["gathers_s"].items())
        print(f"{ranks} ranks, {one['exchange']}, {one['gpu']}: a gather in a graph of {times}")
    write_json(arguments.json, {str(ranks): one for ranks, one in found.items()}, benchmark="distributed_shape")
    if any(row[-1].startswith("no") for row in rows):
        sys.exit("logits differ: see the last column")


def _is_equal(first: dict[str, Any], one: dict[str, Any], name: str, way: str) -> str:
    """Whether logits equal one rank's, and how many rows differ; exact steps are compared with phases."""
    if way == WAYS[2]:
        return ""
    ours, theirs = one["rows"][name][way], first["rows"][name]["phases" if name.startswith("dense") else way]
    same = sum(mine[0] == other[0] for mine, other in zip(ours, theirs, strict=True))
    if same == len(ours):
        return "yes"
    largest = max(float(np.abs(np.subtract(mine[1], other[1])).max()) for mine, other in zip(ours, theirs, strict=True))
    return f"no: {same} of {len(ours)} rows, up to {largest:.1e} off"


def _launched(arguments: argparse.Namespace, ranks: int) -> dict[str, Any]:
    words = ["--layers", str(arguments.layers), "--repeat", str(arguments.repeat)]
    options = ["--backend", arguments.backend] if arguments.backend else []
    return launched(__file__, words, ranks=ranks, options=options)


def measure(arguments: argparse.Namespace) -> None:
    """What every rank does; rank 0 writes what it has found."""
    from gpu_common import SHAPE_7B, device, mx, random_transformer

    from specdec.distributed.group import join
    from specdec.model.architecture import ModelConfig
    from specdec.runtimes.share import Share

    group = join()
    config = ModelConfig.from_dict(SHAPE_7B.to_dict() | {"layers": [0] * arguments.layers})
    share = Share(config, 16, group)
    transformer = share_of(config, share)
    steps, heads = RankSteps(transformer), share.kv_heads(0)
    for array in steps.cache:  # the history of this rank's heads
        shape = (2, config.num_kv_heads, *array.shape[2:])
        history = (mx.arange(math.prod(shape)).reshape(shape) % 97 - 48).astype(mx.float16) / 64
        array[...] = mx.contiguous(history[:, heads])  # a slice would be copied by every kernel that takes it
    mx.eval(steps.cache)
    times: dict[str, dict[str, tuple[float, float]]] = {}
    shown: dict[str, dict[str, list[Any]]] = {}
    for mode, rows in CASES:
        name = f"{mode}, {rows} rows" if rows > 1 else mode
        times[name], shown[name] = _timed(steps, WAYS[:2], mode, rows, arguments.repeat)
    gathers = {size: _gather_s(mx, group, transformer, size) for size in VALUES}
    if group.ranks == 1:
        usual = RankSteps(random_transformer(config, views=("int4",))[0])
        for mode, rows in CASES:
            name = f"{mode}, {rows} rows" if rows > 1 else mode
            times[name] |= _timed(usual, WAYS[2:], mode, rows, arguments.repeat)[0]
    if group.rank == 0:
        found = {"steps_s": times, "rows": shown, "gathers_s": gathers, "exchange": transformer.shared.way}
        Path(arguments.inside).write_text(json.dumps(found | device()), encoding="utf-8")
    group.collect(np.zeros(1, np.float32))  # nobody leaves before all have finished


def _timed(
    steps: RankSteps, ways: tuple[str, ...], mode: str, rows: int, repeat: int
) -> tuple[dict[str, tuple[float, float]], dict[str, list[Any]]]:
    """Median seconds and spread of a step in each way; of each row of logits a digest, and some of them."""
    from gpu_common import seconds

    tokens, times, shown = list(range(5, 5 + rows)), {}, {}
    for way in ways:
        found = steps.logits(mode, tokens, way)
        shown[way] = [(hashlib.sha256(row.tobytes()).hexdigest(), row[::499].tolist()) for row in found]
        times[way] = seconds(lambda w=way: steps(mode, tokens, w), repeat=repeat)
    return times, shown


class RankSteps:
    """Single steps of a transformer after a history: as a runtime begins them, or by a kernel for each phase.

    Args:
        transformer: of the model.
    """

    def __init__(self, transformer: Transformer) -> None:
        from gpu_step import SPAN, Steps

        self._steps, self._transformer, self._span = Steps(transformer), transformer, SPAN
        self.cache = self._steps.cache
        self._held = transformer.new_cache(2 * SPAN, RLock())
        self._held.arrays = self.cache

    def __call__(self, mode: str, tokens: list[int], way: str) -> Any:
        """A step: what to wait for, or None where it has been waited for."""
        from gpu_common import GPU
        from gpu_step import Kind

        count = self._transformer.row_step(len(tokens))
        splits = 0 if self._transformer.whole else -(-(self._steps.position + len(tokens)) // self._span)
        kind, state = Kind(mode, False, count, splits, count), self._steps.state(tokens)
        if way != "phases" and self._transformer.launch(kind, state, [self._held], []):
            GPU.driver.wait()
            return None
        return self._transformer.run(kind, state, [self.cache], [])

    def logits(self, mode: str, tokens: list[int], way: str) -> np.ndarray:
        """Logits of a step (tokens, V)."""
        from gpu_common import mx

        out = self(mode, tokens, way)
        if out is not None:
            mx.eval(out)
        return self._transformer.logits(out, len(tokens))


def share_of(config: Any, share: Any, *, distinct: int = 4) -> Transformer:
    """A transformer of this rank's outputs of random matrices; blocks repeat `distinct` ones."""
    from gpu_common import GPU, TIERS, copy_of, linear_of, mx, random_weights

    from specdec.runtimes.mlx.layers import Layer, Mlp
    from specdec.runtimes.mlx.model import Transformer
    from specdec.runtimes.mlx.ops import Ops
    from specdec.runtimes.mlx.rank_step import rank_step
    from specdec.runtimes.mlx.shared import SharedArrays

    shapes = config.matrices()
    seeds = {name: number for number, name in enumerate(name for name in shapes if name.startswith("layers.0."))}

    def linear(*names: str, paired: bool = False) -> Any:
        parts = [random_weights(*shapes[name], seed=seeds.get(name, 99))[share.outputs(name)] for name in names]
        made = linear_of([mx.contiguous(part) for part in parts], paired=paired, views=("int4",))
        return replace(made, names=names, whole=tuple(shapes[name][0] for name in names))

    attn, mlp, ones = "layers.0.attn", "layers.0.mlp", mx.ones((config.hidden,))
    first = {
        "qkv": linear(f"{attn}.q", f"{attn}.k", f"{attn}.v"),
        "o": linear(f"{attn}.o"),
        "gate_up": linear(f"{mlp}.gate", f"{mlp}.up", paired=True),
        "down": linear(f"{mlp}.down"),
    }
    heads, kv_heads, whole = share.heads(0), share.kv_heads(0), config.layers[0]
    own = replace(whole.attention, heads=heads.stop - heads.start, kv_heads=kv_heads.stop - kv_heads.start)
    layers = []
    for _ in range(distinct):
        made = {name: copy_of(one) for name, one in first.items()}
        inner = Mlp(made["gate_up"].outputs[0], made["gate_up"], made["down"])
        block = replace(whole, attention=own)
        layers.append(Layer(block, made["qkv"], made["o"], inner, attn_norm=ones, mlp_norm=ones))
    head, shared = linear("head"), SharedArrays(mx, share, GPU.driver)
    table = random_weights(config.vocab, config.hidden, 7) * 64
    mx.eval(table, ones)
    layers = [layers[number % distinct] for number in range(config.num_layers)]
    ranks = rank_step(
        mx, config, dtype="float16", share=share, shared=shared, driver=GPU.driver, layers=layers, head=head,
        final_norm=ones, embeddings=table,
    )  # fmt: skip
    return Transformer(
        mx,
        Ops(mx, GPU.backend, "float16"),
        config,
        layers=layers,
        final_norm=ones,
        head=head,
        embeddings=table,
        tier_sizes=TIERS,
        shared=shared,
        ranks=ranks,
    )


def _gather_s(mx: Any, group: Any, transformer: Transformer, size: int) -> float:
    """Seconds of one gather of rows of `size` float16 values in a graph of several, with an addition each."""
    width = size // group.ranks
    own = mx.zeros((1, 1, width), mx.float16)
    bounds = [width * rank for rank in range(group.ranks + 1)]

    def chain() -> Any:
        x = own
        for _ in range(CHAIN):
            x = transformer.shared.joined(bounds, x)[..., :width] + 1
        return x

    run = mx.compile(chain)
    taken = []
    for _ in range(12):
        start = time.perf_counter()
        mx.eval(run())
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2] / CHAIN


if __name__ == "__main__":
    main()
