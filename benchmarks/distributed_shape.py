"""Steps of a 7B-shaped model with random weights on several GPUs beside one: times, and logits bit for bit.

Each rank makes the same random matrices and keeps its outputs of them. One rank runs the same kernels as several, a
kernel for each phase.

    python benchmarks/distributed_shape.py --ranks 1,2 --json results/distributed_shape-DEVICE.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from threading import RLock
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import add_json_option, print_table, write_json
from launched import launched

if TYPE_CHECKING:
    from specdec.runtimes.mlx.model import Transformer

CASES = (("dense", 1), ("dense", 5), ("dense", 16), ("int4", 1))
VALUES = (1024, 4096, 14336)  # of a row that is gathered, float16
CHAIN = 64  # gathers one after the other in a graph


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
    rows = [
        (
            ranks,
            name,
            took * 1e3,
            spread,
            took / first["steps_s"][name][0],
            one["digests"][name] == first["digests"][name],
        )
        for ranks, one in found.items()
        for name, (took, spread) in one["steps_s"].items()
    ]
    print_table(("ranks", "step", "ms", "spread", "of one rank", "equal bits"), rows)
    for ranks, one in found.items():
        times = ", ".join(f"{size} values {1e6 * took:.1f} us" for size, took in one["gathers_s"].items())
        print(f"{ranks} ranks, {one['way']}, {one['gpu']}: a gather in a graph of {times}")
    write_json(arguments.json, {str(ranks): one for ranks, one in found.items()}, benchmark="distributed_shape")
    if any(one["digests"] != first["digests"] for one in found.values()):
        sys.exit("logits differ: see the last column")


def _launched(arguments: argparse.Namespace, ranks: int) -> dict[str, Any]:
    words = ["--layers", str(arguments.layers), "--repeat", str(arguments.repeat)]
    options = ["--backend", arguments.backend] if arguments.backend else []
    return launched(__file__, words, ranks=ranks, options=options)


def measure(arguments: argparse.Namespace) -> None:
    """What every rank does; rank 0 writes what it has found."""
    from gpu_common import SHAPE_7B, device, mx, seconds

    from specdec.distributed.group import join
    from specdec.model.architecture import ModelConfig
    from specdec.runtimes.share import Share

    group = join()
    config = ModelConfig.from_dict(SHAPE_7B.to_dict() | {"layers": [0] * arguments.layers})
    mx.random.seed(1)
    transformer = share_of(config, Share(config, 16, group))
    steps, digests, times = rank_steps(transformer), {}, {}
    heads = Share(config, 16, group).kv_heads(0)
    for array in steps.cache:  # the history of this rank's heads
        shape = (2, config.num_kv_heads, *array.shape[2:])
        history = (mx.arange(math.prod(shape)).reshape(shape) % 97 - 48).astype(mx.float16) / 64
        array[...] = history[:, heads]
    mx.eval(steps.cache)
    for mode, rows in CASES:
        tokens, name = list(range(5, 5 + rows)), f"{mode}, {rows} rows" if rows > 1 else mode
        found = steps.logits(mode, 1.0, tokens)
        phases = steps.logits(mode, 1.0, tokens, alone=False)
        if not np.array_equal(found, phases):
            print(
                f"rank {group.rank}, {name}: one kernel differs from phases by {np.abs(found - phases).max()} of {np.abs(phases).max()}",
                file=sys.stderr,
            )
        digests[name] = hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest()
        if transformer.ranks is not None and mode == "dense":
            times[f"{name}, phases"] = seconds(
                lambda m=mode, t=tokens: steps(m, 1.0, t, alone=False), repeat=arguments.repeat
            )
            digests[f"{name}, phases"] = hashlib.sha256(np.ascontiguousarray(phases).tobytes()).hexdigest()
        times[name] = seconds(lambda m=mode, t=tokens: steps(m, 1.0, t), repeat=arguments.repeat)
    gathers = {size: _gather_s(mx, group, transformer, size) for size in VALUES}
    if group.rank == 0:
        found = {"steps_s": times, "digests": digests, "gathers_s": gathers, "mlx_backend": group.backend}
        found["way"] = transformer.shared.way
        Path(arguments.inside).write_text(json.dumps(found | device()), encoding="utf-8")
    group.collect(np.zeros(1, np.float32))  # nobody leaves before all have finished


def rank_steps(transformer: Transformer) -> Any:
    """Steps as a runtime makes them: as one kernel where that can be done."""
    from gpu_common import GPU, mx
    from gpu_step import SPAN, Kind, Steps, row_step

    class RankSteps(Steps):
        def __init__(self) -> None:
            super().__init__(transformer)
            self.held = transformer.new_cache(self.cache[0].shape[-2], RLock())
            self.held.arrays = self.cache

        def __call__(self, mode: str, effort: float, tokens: list[int], *, alone: bool = True) -> Any:
            selects, count = effort < 1, row_step(len(tokens))
            kind = Kind(mode, selects, count, -(-(self.position + len(tokens)) // SPAN), count)
            takes = self.takes(mode, effort) if selects else []
            if alone and transformer.launch(kind, self.state(tokens), [self.held], takes):
                GPU.driver.wait()
                return None
            return transformer.run(kind, self.state(tokens), [self.cache], takes)

        def logits(self, mode: str, effort: float, tokens: list[int], *, alone: bool = True) -> np.ndarray:
            out = self(mode, effort, tokens, alone=alone)
            if out is not None:
                mx.eval(out)
            return transformer.logits(out, len(tokens))

    return RankSteps()


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
