"""What tuned efforts bring: drafts at equal mean effort, all matrices alike or effort shared out among them.

Divergence is measured as `specdec tune` does it, on its text, and shared out in several ways; then every way drafts
along the model's own answers to other prompts. Compared position by position: how often a draft is kept, what a step
costs, and what `auto` makes of it over the recording, where lookup is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json
from policy_replay import SEEDS, shown
from replay_engine import Answer, Costs, Position, Replay, Score
from specdec.policies.goodput.menu import EFFORTS
from specdec.policies.registry import create

import specdec
from specdec.engine.policy import DraftOption
from specdec.engine.prompt import encode_prompt
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.lab.bench.prompts import BUILT_IN, load_prompts
from specdec.lab.tune.allocation import allocate, net_of_rounding
from specdec.lab.tune.costs import StepTimer, best_speedup
from specdec.lab.tune.divergence import Comparison
from specdec.lab.tune.run import NEAR_FULL, THOROUGH
from specdec.lab.tune.sensitivity import Sums, measure
from specdec.lab.tune.text import read_text, split_passages
from specdec.lab.tune.units import Unit, units_of
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one

ROWS = (1, 2, 3, 5, 9)
EQUAL = "equal"
# Objective, granularity, and how far from equal efforts to what was allocated.
WAYS = {
    "KL by matrix, 0.35 of the way": ("kl", "matrix", 0.35),
    "KL by matrix, 0.7": ("kl", "matrix", 0.7),
    "KL by matrix, all the way": ("kl", "matrix", 1.0),
    "distance by matrix, 0.7": ("distance", "matrix", 0.7),
    "KL by layer, 0.7": ("kl", "layer", 0.7),
    "KL by kind, 0.7": ("kl", "kind", 0.7),
}


def sensitivities(model: Model, view: str, places: int, file: Path | None) -> tuple[list[Unit], Sums]:
    """What each matrix tolerates: measured, or read from `file`, an earlier result."""
    assert model.tokenizer is not None
    units, columns = units_of(model.config, quick=False), len(THOROUGH.levels) + 1
    if file is not None:
        kept = json.loads(file.read_text(encoding="utf-8"))["results"]["sensitivity"]
        return units, Sums(kept["done"], np.array(kept["kl"]), np.array(kept["distance"]))
    passages = split_passages(read_text(None), model.tokenizer, count=THOROUGH.passages, length=THOROUGH.passage_tokens)
    where = [
        (passage, int(index))
        for passage, tokens in enumerate(passages)
        for index in np.linspace(len(tokens) // 4, len(tokens) - 1, THOROUGH.places)
    ][:places]
    sums = Sums.empty(len(units), columns)
    measure(
        model.runtime, passages, units, view=view, levels=(*THOROUGH.levels, NEAR_FULL), places=where, sums=sums,
        done=lambda sums: print(f"\r  {sums.done}/{len(where) * len(units)} measured", end="", file=sys.stderr),
    )  # fmt: skip
    return units, sums


def schedules(model: Model, units: Sequence[Unit], sums: Sums) -> dict[str, dict[float, EffortSchedule]]:
    """Schedules by way and mean effort, all of exactly that mean."""
    found = {EQUAL: {effort: EffortSchedule(effort) for effort in EFFORTS}}
    for name, (objective, granularity, share) in WAYS.items():
        kl = net_of_rounding(sums.mean(getattr(sums, objective)))
        if objective == "distance":  # divergence goes with its square
            kl = kl**2
        group = [_group(unit, granularity) for unit in units]
        names = list(dict.fromkeys(group))
        rows = np.array([[name == one for one in group] for name in names], dtype=float)
        sizes = rows @ np.array([unit.multiplications for unit in units], dtype=float)
        of_way = found[name] = {1.0: EffortSchedule()}
        for effort in EFFORTS[:-1]:
            best = allocate(
                rows @ kl, levels=THOROUGH.levels, multiplications=sizes, cost_rate=np.ones(len(names)), mean=effort
            )
            mixed = dict(zip(names, effort + share * (best - effort), strict=True))
            efforts = {
                name: float(mixed[one]) for unit, one in zip(units, group, strict=True) for name in unit.matrices
            }
            of_way[effort] = EffortSchedule(effort, efforts).scaled_to(effort, model.config)
    return found


def _group(unit: Unit, granularity: str) -> str:
    if granularity == "kind":
        return unit.kind
    return unit.name if granularity == "matrix" else unit.name.split(",")[0]


class Recording:
    """Drafts of every way along plain greedy answers."""

    def __init__(self, model: Model, ways: Mapping[str, Mapping[float, EffortSchedule]], view: str) -> None:
        self.model, self.ways, self.view = model, ways, view
        self.answers: dict[str, list[Answer]] = {name: [] for name in ways}
        self.kept: dict[tuple[str, float], list[bool]] = {(name, e): [] for name in ways for e in EFFORTS}
        self.kl: dict[tuple[str, float], list[float]] = {key: [] for key in self.kept}

    def add(self, task: str, ids: list[int], most: int) -> None:
        """One prompt's answer."""
        runtime, dense, sampler = self.model.runtime, EffortSchedule(), Sampler(SamplingParams())
        assert self.model.tokenizer is not None
        cache, tokens = runtime.new_cache(len(ids) + most), list(ids)
        positions: dict[str, list[Position]] = {name: [] for name in self.ways}
        forward_one(runtime, ids[:-1], cache, effort=dense, logits="last")
        while len(tokens) < len(ids) + most and tokens[-1] not in self.model.tokenizer.eos_ids:
            place = len(tokens)
            rows: dict[tuple[str, float], np.ndarray] = {}
            for name, by_effort in self.ways.items():
                for effort, schedule in by_effort.items():
                    if effort == 1.0 and name != EQUAL:
                        rows[name, effort] = rows[EQUAL, effort]
                        continue
                    step = forward_one(runtime, [tokens[-1]], cache, effort=schedule, view=self.view)
                    rows[name, effort] = step.logits[0]
                    cache.trim(place - 1)
            logits = forward_one(runtime, [tokens[-1]], cache, effort=dense).logits[0]
            right, exact = Comparison(logits), shown(logits)
            tokens.append(right.token)
            for key, row in rows.items():
                self.kept[key].append(int(row.argmax()) == right.token)
                self.kl[key].append(right.divergence(row))
            for name, by_effort in self.ways.items():
                drafts = {e: (sampler(rows[name, e], place), shown(rows[name, e])) for e in by_effort}
                positions[name].append(Position(exact, drafts))
        for name, found in positions.items():
            self.answers[name].append(Answer(task, len(ids), tokens, found))


def record(model: Model, ways: Mapping[str, Mapping[float, EffortSchedule]], args: argparse.Namespace) -> Recording:
    """All prompts."""
    recording = Recording(model, ways, args.view)
    prompts = load_prompts(BUILT_IN, tasks=args.tasks, per_task=args.per_task)
    for number, prompt in enumerate(prompts):
        ids = encode_prompt(prompt.content, model.tokenizer, model.config).ids
        recording.add(prompt.task, ids, args.max_tokens)
        print(f"\r  {number + 1}/{len(prompts)} recorded   ", end="", file=sys.stderr)
    print(file=sys.stderr)
    return recording


def auto_speed(answers: Sequence[Answer], verify: dict[int, float], draft: dict[float, float], view: str) -> float:
    """Speed of `auto` over plain decoding with drafts of the model alone, over the recording."""
    costs, option = Costs(verify, draft), DraftOption("effort", view, takes_effort=True)
    speeds = []
    for seed in range(SEEDS):
        replay, score = Replay(costs, view, 0.0, seed=seed), Score()
        for answer in answers:
            replay.run(create("auto"), answer, (option,), score)
        speeds.append(score.tokens / score.seconds * verify[1])
    return mean(speeds)


def report(
    recording: Recording, verify: dict[int, float], step: dict[tuple[str, float], float]
) -> list[dict[str, Any]]:
    """A row for each way and mean effort; differences are to equal efforts, position by position."""
    rows = []
    for name, by_effort in recording.ways.items():
        costs = {effort: step[name, effort] for effort in by_effort}
        auto = auto_speed(recording.answers[name], verify, costs, recording.view)
        for effort in EFFORTS[:-1]:
            kept, base = (np.array(recording.kept[one, effort], dtype=float) for one in (name, EQUAL))
            gain = kept - base
            speedup, length = best_speedup(float(kept.mean()), costs[effort], verify)
            rows.append(
                {
                    "way": name, "effort": effort, "kept": float(kept.mean()), "gain": float(gain.mean()),
                    "error": float(gain.std() / len(gain) ** 0.5), "kl": mean(recording.kl[name, effort]),
                    "step": costs[effort] / verify[1], "speedup": speedup, "length": length, "auto": auto,
                }
            )  # fmt: skip
    return rows


def timed(model: Model, ways: Mapping[str, Mapping[float, EffortSchedule]], view: str, repeats: int) -> Any:
    """Seconds of exact passes by rows, and of draft steps by way and effort, all taking turns."""
    tokens = [index * 997 % model.config.vocab_size for index in range(200)]
    timer = StepTimer(model.runtime, tokens, repeats=repeats)
    keys = [(name, effort) for name, by_effort in ways.items() for effort in by_effort]
    seconds = timer.drafts([ways[name][effort] for name, effort in keys], view)
    return timer.exact(), dict(zip(keys, seconds, strict=True))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="catalogue name or store")
    parser.add_argument("--view", default="int4")
    parser.add_argument("--places", type=int, default=20, help="places of the tuning text to measure at (20)")
    parser.add_argument("--sensitivity", type=Path, metavar="FILE", help="take that part from an earlier result")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--per-task", type=int, default=2, help="prompts per task")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=15, help="rounds of measuring costs")
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    model = specdec.load(args.model, runtime="native", threads=args.threads)
    model.runtime.prepare(args.view)
    units, sums = sensitivities(model, args.view, args.places, args.sensitivity)
    ways = schedules(model, units, sums)
    verify, step = timed(model, ways, args.view, args.repeat)
    recording = record(model, ways, args)
    rows = report(recording, verify, step)
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    settings = {"model": Path(args.model).name, "view": args.view, "per_task": args.per_task}
    settings |= {"places": sums.done // len(units), "positions": len(recording.kept[EQUAL, 1.0])}
    sensitivity = {"done": sums.done, "kl": sums.kl.tolist(), "distance": sums.distance.tolist()}
    results = {"settings": settings, "rows": rows, "sensitivity": sensitivity, "units": [asdict(u) for u in units]}
    write_json(args.json, results, benchmark="tune_gain")


if __name__ == "__main__":
    main()
