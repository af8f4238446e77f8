"""Speculation on a 7B-shaped model on the GPU: real kernels at real sizes, acceptance from a smaller model's record.

Random weights accept nothing, so acceptance comes from `acceptance_map.py`'s result of a real model: by
place in the draft, the share that was kept where everything before it was. Every launch is run and waited for and its
choices are read, as decoding does: plain decoding goes on for eight tokens a launch, and a launch drafts all tokens of
a round. Only the decision how many tokens count is drawn from the record.

    python benchmarks/gpu_replay.py results/acceptance-MODEL.json --json results/gpu_replay-DEVICE.json
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from common import add_json_option, print_table, write_json
from gpu_common import SHAPE_7B, device, mx, random_transformer
from gpu_step import CONTEXT, Steps, mlx_step

from specdec.model.architecture import ModelConfig

AT_ONCE = 8  # tokens of a launch that decodes plainly


def kept_shares(path: Path, view: str, effort: float) -> list[float]:
    """Share of drafted tokens that were kept, by place, among those whose predecessors all were."""
    seen: Counter[int] = Counter()
    kept: Counter[int] = Counter()
    for row in json.loads(path.read_text())["results"]["rows"]:
        if row["view"] == view and row["effort"] == effort:
            seen[row["position"]] += row["looked_at"]
            kept[row["position"]] += row["kept"]
    return [kept[place] / seen[place] for place in sorted(seen)]


class Decoder:
    """Decodes with steps of a transformer from CONTEXT tokens on, over and over."""

    def __init__(self, steps: Steps, room: int) -> None:
        self.steps, self.room, self.position = steps, room, CONTEXT

    def chosen(self, mode: str, effort: float, tokens: list[int], ahead: int = 0) -> list[int]:
        """What a launch at the position chooses after every row, and `ahead` tokens further."""
        self.steps.position = self.position
        return self.steps.chosen(mode, effort, tokens, ahead)

    def advance(self, count: int) -> None:
        """Keep `count` more tokens; start over if the cache is full."""
        self.position += count
        if self.position + 2 * 16 > self.room:
            self.position = CONTEXT

    def plain(self, tokens: int) -> float:
        """Seconds a token without drafts."""
        start, token = time.perf_counter(), 1
        for _ in range(0, tokens, AT_ONCE):
            token = self.chosen("dense", 1.0, [token], AT_ONCE - 1)[-1]
            self.advance(AT_ONCE)
        return (time.perf_counter() - start) / (-(-tokens // AT_ONCE) * AT_ONCE)

    def speculative(self, tokens: int, length: int, effort: float, shares: list[float]) -> tuple[float, float]:
        """Seconds a token, and tokens a round, with `length` int4 drafts a round."""
        chance = random.Random(7)
        start, made, rounds = time.perf_counter(), 0, 0
        while made < tokens:
            drafts = [1, *self.chosen("int4", effort, [1], length - 1)]
            self.chosen("dense", 1.0, drafts)
            accepted = 0
            while accepted < length and chance.random() < shares[accepted]:
                accepted += 1
            self.advance(accepted + 1)
            made, rounds = made + accepted + 1, rounds + 1
        return (time.perf_counter() - start) / made, made / rounds


def mlx_plain(config: ModelConfig, plain: list[dict[str, object]], table: object, tokens: int) -> float:
    """Seconds per token of MLX's own dense step after CONTEXT tokens, with the logits read."""
    run = mlx_step(config, plain)
    shape = (1, config.num_kv_heads, CONTEXT, config.head_dim)
    cache = [
        (mx.random.normal(shape).astype(mx.float16), mx.random.normal(shape).astype(mx.float16)) for _ in plain[1:]
    ]
    mx.eval(cache)
    taken = []
    for _ in range(tokens):
        start = time.perf_counter()
        int(mx.argmax(run(table[mx.array([1])], cache), axis=-1)[0])  # type: ignore[index]
        taken.append(time.perf_counter() - start)
    return median(taken)


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="result of acceptance_map.py")
    parser.add_argument("--tokens", type=int, default=200, help="of each answer (default %(default)s)")
    parser.add_argument("--layers", type=int, default=SHAPE_7B.num_layers, help="blocks (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    config = replace(SHAPE_7B, layers=SHAPE_7B.layers[:1] * arguments.layers)
    transformer, plain, _ = random_transformer(config, views=("int4",))
    steps = Steps(transformer)
    decoder = Decoder(steps, int(np.prod(steps.cache[0].shape[-2:-1])))
    for rows in (1, 5, 9):  # kernels are compiled when they are first needed
        decoder.chosen("dense", 1.0, list(range(rows)))
    own = min(decoder.plain(arguments.tokens) for _ in range(2))
    theirs = mlx_plain(config, plain, transformer.embeddings, 40)
    rows_of = [("MLX dense", 0, theirs * 1e3, own / theirs, 1.0, 1.0), ("plain", 0, own * 1e3, 1.0, theirs / own, 1.0)]
    for effort in (1.0, 0.7, 0.5):
        shares = kept_shares(arguments.record, "int4", effort)
        if not shares:
            continue
        decoder.chosen("int4", effort, [1])
        for length in range(1, len(shares) + 1):
            taken, per_round = decoder.speculative(arguments.tokens, length, effort, shares)
            label = f"int4 at {effort}"
            rows_of.append((label, length, taken * 1e3, own / taken, theirs / taken, per_round))
    print(device())
    header = ("decoding", "drafts a round", "ms a token", "of plain", "of MLX's dense step", "tokens a round")
    print_table(header, rows_of)
    results = {"rows": [dict(zip(header, row, strict=True)) for row in rows_of], "record": arguments.record.name,
               "layers": arguments.layers, "context": CONTEXT, **device()}  # fmt: skip
    write_json(arguments.json, results, benchmark="gpu_replay")


if __name__ == "__main__":
    main()
