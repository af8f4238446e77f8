"""Policies compared on recorded drafts at constant costs: no noise of the machine, every decision the policy's own.

`policies.py` measures the real thing and is as noisy as the machine; this records, position by position, what the model
drafts at every effort behind the exact history of its plain answer, measures what passes cost, and lets every policy
decide over the same recording. See `replay_engine` for what that leaves out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json
from replay_engine import CHAIN_NAME, LOOKUP, Answer, Costs, Position, Replay, Score, Shown
from specdec.policies.fixed import FixedPolicy
from specdec.policies.goodput.acceptance import signal_class
from specdec.policies.goodput.menu import EFFORTS
from specdec.policies.registry import create

import specdec
from specdec.drafters.signals import LogitDistribution
from specdec.engine.policy import DraftOption, Policy
from specdec.engine.prompt import encode_prompt
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.lab.bench.prompts import BUILT_IN, load_prompts
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 33)
LENGTHS = (1, 2, 3, 4, 5, 6, 8)
SEEDS = 4  # of the jitter in what learning policies are told; their scores are means over them


def shown(logits: np.ndarray) -> Shown:
    """The shape of a distribution, without its logits."""
    one = LogitDistribution(logits)
    return Shown(one.entropy, one.top_probability, one.margin)


def record(model: Model, args: argparse.Namespace, temperature: float) -> list[Answer]:
    """Plain answers, and what drafts propose along them."""
    answers = []
    prompts = load_prompts(BUILT_IN, tasks=args.tasks, per_task=args.per_task)
    for number, prompt in enumerate(prompts):
        ids = encode_prompt(prompt.content, model.tokenizer, model.config).ids
        sampler = Sampler(SamplingParams(temperature=temperature, seed=1))
        answers.append(_answer(model, args, prompt.task, ids, sampler))
        print(f"\r  temperature {temperature:g}: {number + 1}/{len(prompts)} recorded", end="", file=sys.stderr)
    print(file=sys.stderr)
    return answers


def _answer(model: Model, args: argparse.Namespace, task: str, ids: list[int], sampler: Sampler) -> Answer:
    runtime, dense = model.runtime, EffortSchedule()
    assert model.tokenizer is not None
    cache = runtime.new_cache(len(ids) + args.max_tokens)
    tokens, positions = list(ids), []
    if len(ids) > 1:
        forward_one(runtime, ids[:-1], cache, effort=dense, logits="last")
    while len(positions) < args.max_tokens and tokens[-1] not in model.tokenizer.eos_ids:
        place, drafts = len(tokens), {}
        for effort in EFFORTS:
            logits = forward_one(runtime, [tokens[-1]], cache, effort=EffortSchedule(effort), view=args.view).logits[0]
            cache.trim(place - 1)
            drafts[effort] = (sampler(logits, place), shown(logits))
        logits = forward_one(runtime, [tokens[-1]], cache, effort=dense).logits[0]
        tokens.append(sampler(logits, place))
        positions.append(Position(shown(logits), drafts))
    return Answer(task, len(ids), tokens, positions)


def measure(model: Model, view: str, repeat: int) -> Costs:
    """Costs of passes behind 200 tokens: medians of ratios to the one-row pass of the same round of measurements."""
    runtime, dense, context = model.runtime, EffortSchedule(), 200
    cache = runtime.new_cache(context + max(ROWS))
    tokens = [index * 997 % model.config.vocab_size for index in range(context + max(ROWS))]
    forward_one(runtime, tokens[:context], cache, effort=dense, logits="last")

    def seconds(run: Callable[[], object]) -> float:
        start_s = time.perf_counter()
        run()
        taken_s = time.perf_counter() - start_s
        cache.trim(context)
        return taken_s

    ratios: dict[tuple[str, float], list[float]] = defaultdict(list)
    plain = []
    for _ in range(repeat):
        one = min(seconds(lambda: forward_one(runtime, tokens[:1], cache, effort=dense)) for _ in range(2))
        plain.append(one)
        for rows in ROWS[1:]:
            batch = tokens[:rows]
            ratios["verify", rows].append(seconds(lambda b=batch: forward_one(runtime, b, cache, effort=dense)) / one)
        for effort in EFFORTS:
            schedule = EffortSchedule(effort)
            step = seconds(lambda s=schedule: forward_one(runtime, tokens[:1], cache, effort=s, view=view))
            ratios["draft", effort].append(step / one)
    unit = median(plain)
    verify = {1: unit} | {int(rows): unit * median(seen) for (kind, rows), seen in ratios.items() if kind == "verify"}
    draft = {effort: unit * median(seen) for (kind, effort), seen in ratios.items() if kind == "draft"}
    return Costs(verify, draft)


def read_costs(file: Path) -> Costs:
    """The costs that a result file of this program holds."""
    kept = json.loads(file.read_text(encoding="utf-8"))["results"]["costs"]
    unit = kept["dense_step_s"]
    return Costs(
        {int(rows): unit * value for rows, value in kept["verify"].items()},
        {float(effort): unit * value for effort, value in kept["draft"].items()},
    )


def contenders(view: str) -> dict[str, tuple[Callable[[], Policy], tuple[DraftOption, ...]]]:
    """What is compared: how to make its policy, and what it may draft with."""
    model = DraftOption("effort", view, takes_effort=True)
    made: dict[str, tuple[Callable[[], Policy], tuple[DraftOption, ...]]] = {
        f"fixed {effort:g}:{length}": (lambda e=effort, k=length: FixedPolicy(k, e), (model,))  # type: ignore[misc]
        for effort in EFFORTS
        for length in LENGTHS
    }
    made |= {name: (lambda n=name: create(n), (model,)) for name in ("heuristic", "confidence", "entropy")}  # type: ignore[misc]
    made |= {
        "auto": (lambda: create("auto"), (model, LOOKUP)),
        "auto, effort alone": (lambda: create("auto"), (model,)),
        "auto, ngram alone": (lambda: create("auto"), (LOOKUP,)),
        "auto, chain:ngram,effort": (lambda: create("auto"), (DraftOption(CHAIN_NAME, view, takes_effort=True),)),
    }
    made |= {
        f"auto, effort {effort:g} only": (lambda e=effort: create(f"goodput:effort={e}"), (model, LOOKUP))  # type: ignore[misc]
        for effort in EFFORTS[1:]
    }
    return made


def scores(answers: Sequence[Answer], costs: Costs, view: str, temperature: float) -> dict[str, dict[str, float]]:
    """Speed over plain decoding, by contender and task."""
    found: dict[str, dict[str, float]] = {}
    tasks = list(dict.fromkeys(answer.task for answer in answers))
    for name, (make, options) in contenders(view).items():
        learns = name.startswith("auto")
        by_task: dict[str, list[float]] = defaultdict(list)
        for seed in range(SEEDS if learns else 1):
            replay = Replay(costs, view, temperature, seed=seed)
            tally = {task: Score() for task in tasks}
            for answer in answers:
                replay.run(make(), answer, options, tally[answer.task])
            for task, score in tally.items():
                by_task[task].append(score.tokens / score.seconds * costs.verify(1))
        found[name] = {task: mean(values) for task, values in by_task.items()}
    return found


def signals(answers: Sequence[Answer], temperature: float) -> list[dict[str, Any]]:
    """What signals tell: nats of surprise at whether a draft is kept, by effort, for one who knows only the mean, the
    class of the signal before, or the class of the draft's own signal. Classes are those of the goodput policy."""
    rows = []
    for effort in EFFORTS:
        counts: dict[str, dict[int, list[int]]] = {"mean": {}, "before": {}, "own": {}}
        for answer in answers:
            for place in range(1, len(answer.positions)):
                token, one = answer.positions[place].drafts[effort]
                is_kept = token == answer.tokens[answer.prompt_length + place]
                before = signal_class(answer.positions[place - 1].exact, greedy=not temperature)
                own = signal_class(one, greedy=not temperature)
                for known, label in (("mean", 0), ("before", before), ("own", own)):
                    counts[known].setdefault(label, [0, 0])[is_kept] += 1
        kept = counts["mean"][0][1] / sum(counts["mean"][0])
        surprise = {f"surprise knowing {known}": _surprise(seen.values()) for known, seen in counts.items()}
        rows.append({"temperature": temperature, "effort": effort, "kept": kept, **surprise})
    return rows


def _surprise(cells: Iterable[Sequence[int]]) -> float:
    """Mean negative log-likelihood in nats of what happened, cell by cell at the cell's own rate."""
    cells = list(cells)
    total = sum(sum(cell) for cell in cells)
    return -sum(count * math.log(count / sum(cell)) for cell in cells for count in cell if count) / total


def report(found: dict[str, dict[str, float]], temperature: float) -> list[dict[str, Any]]:
    """Rows for a table: of the grid, only the best one for each task and the best one overall."""
    fixed = {name: row for name, row in found.items() if name.startswith("fixed")}
    tasks = list(next(iter(found.values())))
    best = {task: max(1.0, *(row[task] for row in fixed.values())) for task in tasks}
    overall = max(fixed, key=lambda name: mean(fixed[name].values()))
    rows = {"best fixed setting of each task": best, f"best fixed setting of all ({overall[6:]})": fixed[overall]}
    rows |= {name: row for name, row in found.items() if not name.startswith("fixed")}
    rows["auto / best fixed of each task"] = {task: found["auto"][task] / best[task] for task in tasks}
    return [
        {"temperature": temperature, "contender": name, **row, "mean over tasks": mean(row.values())}
        for name, row in rows.items()
    ]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="catalogue name, store, folder or .gguf")
    parser.add_argument("--view", default="int4", help="draft view (int4)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--per-task", type=int, default=4, help="prompts per task")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeat", type=int, default=15, help="rounds of measuring costs")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="take costs from an earlier result of this program")
    parser.add_argument("--runtime", default="native")
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    model = specdec.load(args.model, runtime=args.runtime, threads=args.threads)
    model.runtime.prepare(args.view)
    costs = measure(model, args.view, args.repeat) if args.costs is None else read_costs(args.costs)
    rows: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    tokens = {}
    for temperature in args.temperatures:
        answers = record(model, args, temperature)
        tokens[f"{temperature:g}"] = sum(len(answer.positions) for answer in answers)
        rows += report(scores(answers, costs, args.view, temperature), temperature)
        told += signals(answers, temperature)
    for table in (rows, told):
        print_table(list(table[0]), [list(row.values()) for row in table])
    unit = costs.verify(1)
    settings = {"model": Path(args.model).name, "view": args.view, "per_task": args.per_task, "tokens": tokens}
    results = {
        "settings": settings,
        "costs": {
            "dense_step_s": unit,
            "verify": {str(rows): value / unit for rows, value in costs.verify_s.items()},
            "draft": {f"{effort:g}": value / unit for effort, value in costs.draft_s.items()},
        },
        "rows": rows,
        "signals": told,
    }
    write_json(args.json, results, benchmark="policy_replay")


if __name__ == "__main__":
    main()
