"""Speculation on a 7B-shaped model on the GPU: real kernels at real sizes, acceptance from a smaller model's record.

Random weights accept nothing, so acceptance comes from `acceptance_map.py`'s result of a real model: by
place in the draft, the share that was kept where everything before it was. Every launch is run and waited for and its
choices are read, as decoding does: plain decoding goes on for eight tokens a launch, and a launch drafts all tokens of
a round. Only the decision how many tokens count is drawn from the record.

    python benchmarks/gpu_replay.py results/acceptance-MODEL.json --json results/gpu_replay-DEVICE.json
    python benchmarks/gpu_replay.py --answers answers.jsonl --survey survey.json

With `--answers`, a file that `lookup_replay.py` recorded of a smaller model, launches that draft and verify trees by
themselves are timed as well, every tree full. The default policy then goes through those answers at the costs measured
here, as `lookup_replay.py --turns` does.
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
from lookup_replay import TURN_HEADER, read_answers, read_survey, turn_rows
from specdec.kernels.reference.recycle import TOP

from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import Recycling
from specdec.runtimes.mlx.recycle import Turning, turns_of
from specdec.runtimes.mlx.state import MOST_AHEAD, show_choices

AT_ONCE = 8  # tokens of a launch that decodes plainly
REPEAT = 20  # launches of each kind
TURNS = (4, 8, 16)  # rows of a turn


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

    def turns(self, turning: Turning, rows: int, count: int) -> tuple[float, float]:
        """Seconds of a launch of `count` turns, which verify trees of up to `rows` rows, and rows of a turn."""
        held, text = self.steps.held, list(range(CONTEXT + 1))
        self.steps.position, kind = CONTEXT, turning.kind(rows)
        wanted = Recycling(text, rows, len(text) + 2 * MOST_AHEAD)
        taken, looked = [], list[int]()
        for _ in range(REPEAT):
            start = time.perf_counter()
            state = self.steps.state([text[-1]])
            show_choices(state, ahead=count - 1)
            turning.recycler.tell(state, held, wanted)
            self.steps.transformer.launch(kind, state, [held], [])
            found = turns_of(self.steps.transformer.choices(kind.rows, count - 1))
            taken.append((time.perf_counter() - start) * count / len(found))
            looked += [1 + len(turn.tokens) for turn in found]
        return median(taken), sum(looked) / len(looked)

    def costs(self, config: ModelConfig) -> tuple[dict[int, float], float]:
        """Costs of turns by rows, and of a launch, in plain steps: what one turn and many have alike."""
        turning = Turning(mx, self.steps.transformer, "dense", lambda *_: 0)
        likely = np.random.default_rng(5).integers(config.vocab_size, size=(config.vocab_size, TOP), dtype=np.int32)
        turning.recycler.know(np.arange(config.vocab_size, dtype=np.int32), likely)
        few, many = (self._ahead(count) for count in (1, 1 + MOST_AHEAD))
        step = (many - few) / MOST_AHEAD
        costs, launches = {}, [few - step]
        for rows in TURNS:
            (few, _), (many, full) = (self.turns(turning, rows, count) for count in (1, 1 + MOST_AHEAD))
            costs[rows] = (many - few) / MOST_AHEAD / step
            launches.append(few - costs[rows] * step)
            cost = f"{costs[rows]:.2f} plain steps of {step * 1e3:.2f} ms"
            print(f"a turn of up to {rows} rows, {full:.1f} in the mean: {cost}")
        return costs, median(launches) / step

    def _ahead(self, count: int) -> float:
        """Seconds of a launch of `count` plain tokens."""
        self.position, taken = CONTEXT, []
        for _ in range(REPEAT):
            start = time.perf_counter()
            self.chosen("dense", 1.0, [1], count - 1)
            taken.append(time.perf_counter() - start)
        return median(taken)


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
    parser.add_argument("record", type=Path, nargs="?", help="result of acceptance_map.py")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="answers that lookup_replay.py recorded")
    parser.add_argument(
        "--survey", type=Path, metavar="FILE", help="successors of frequent tokens, by lookup_replay.py"
    )
    parser.add_argument("--tokens", type=int, default=200, help="of each answer (default %(default)s)")
    parser.add_argument("--layers", type=int, default=SHAPE_7B.num_layers, help="blocks (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    if not arguments.record and not arguments.answers:
        parser.error("give a RECORD of acceptance_map.py, --answers of lookup_replay.py, or both")
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
        shares = kept_shares(arguments.record, "int4", effort) if arguments.record else []
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
    records = [path.name for path in (arguments.record, arguments.answers, arguments.survey) if path]
    results = {"rows": [dict(zip(header, row, strict=True)) for row in rows_of], "records": records,
               "layers": arguments.layers, "context": CONTEXT, **device()}  # fmt: skip
    if arguments.answers:
        costs, launch = decoder.costs(config)
        print(f"a launch: {launch:.3f} plain steps")
        known = read_survey(arguments.survey) if arguments.survey else {}
        found = turn_rows(read_answers(arguments.answers), costs, launch, known)
        print_table(TURN_HEADER, found)
        results |= {
            "turns": costs,
            "launch": launch,
            "kinds": [dict(zip(TURN_HEADER, row, strict=True)) for row in found],
        }
    write_json(arguments.json, results, benchmark="gpu_replay")


if __name__ == "__main__":
    main()
