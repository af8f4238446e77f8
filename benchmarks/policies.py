"""Policies and drafters against each other, task by task: plain decoding, a grid of fixed settings, and what adapts.

Every prompt is answered by every contender in turn, the order moving on by one with each prompt, so that neither a
machine that slows down nor a place in the row favours anybody. The tokens of each answer are compared with plain
decoding's at the same temperature before its time counts. Policies that learn keep what they have learnt from prompt to
prompt, as they do in a program that loads a model once; the first prompt is learnt on, and counts.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from common import add_json_option, print_machine, print_table, write_json
from end_to_end import Tally, fixed_setting, prompts, specdec_contender

import specdec
from specdec.model import Model

ADAPTIVE: dict[str, dict[str, object]] = {
    "auto": {},
    "auto, effort alone": {"drafter": "effort"},
    "auto, one effort": {"policy": "goodput:effort=1.0"},
    "auto, ngram alone": {"drafter": "ngram"},
    "ngram, fixed 4": {"drafter": "ngram", "policy": "fixed:length=4"},
    "ngram, fixed 8": {"drafter": "ngram", "policy": "fixed:length=8"},
    "heuristic": {"policy": "heuristic", "drafter": "effort"},
    "confidence": {"policy": "confidence", "drafter": "effort"},
    "entropy": {"policy": "entropy", "drafter": "effort"},
    "effort-entropy": {"policy": "effort-entropy", "drafter": "effort"},
    "bandit": {"policy": "bandit"},
}
GRID = [f"int4:{effort}:{length}" for effort in (0.5, 1.0) for length in (1, 2, 4, 6, 8)]


def contenders(
    model: Model, args: argparse.Namespace, temperature: float
) -> dict[str, Callable[[str, Tally], list[int]]]:
    """Every contender, warmed up, by name; plain decoding first."""
    chosen: dict[str, dict[str, object]] = {"plain": {"speculate": False}}
    chosen |= {f"fixed {setting}": fixed_setting(setting) for setting in args.grid}
    chosen |= {name: options for name, options in ADAPTIVE.items() if not args.only or name in args.only}
    sampling: dict[str, object] = {"temperature": temperature, "seed": 1}
    return {name: specdec_contender(model, options | sampling, args.max_tokens) for name, options in chosen.items()}


def measure(args: argparse.Namespace, model: Model, temperature: float) -> dict[str, dict[str, Tally]]:
    """Tallies by task and contender."""
    running = contenders(model, args, temperature)
    names = list(running)
    tallies: dict[str, dict[str, Tally]] = {}
    answered = 0
    for task, texts in prompts(args.per_task).items():
        if args.tasks and task not in args.tasks:
            continue
        row = tallies.setdefault(task, {name: Tally() for name in names})
        for index, prompt in enumerate(texts):
            turn = answered % len(names)
            order, answered = names[turn:] + names[:turn], answered + 1
            answers = {name: running[name](prompt, row[name]) for name in order}
            for name, tokens in answers.items():
                if tokens != answers["plain"]:
                    raise SystemExit(f"{name} differs from plain decoding on {task} prompt {index}")
            print(f"  temperature {temperature:g} {task} {index + 1}/{len(texts)}", file=sys.stderr)
    return tallies


def report(tallies: dict[str, dict[str, Tally]], temperature: float) -> list[dict[str, object]]:
    """A row for each task and contender, and the mean over tasks of the ratio to plain decoding."""
    rows: list[dict[str, object]] = []
    ratios: dict[str, list[float]] = defaultdict(list)
    for task, row in tallies.items():
        plain = row["plain"].tokens / row["plain"].seconds
        for name, tally in row.items():
            rate = tally.tokens / tally.seconds
            ratios[name].append(rate / plain)
            rows.append(
                {
                    "temperature": temperature,
                    "task": task,
                    "contender": name,
                    "tok_per_s": rate,
                    "median": median(tally.rates),
                    "ratio_to_plain": rate / plain,
                    "drafted_per_round": tally.drafted / tally.rounds,
                    "accepted_share": tally.accepted / tally.drafted if tally.drafted else 0.0,
                    "overhead_share": tally.overhead_s / tally.seconds,
                }
            )
    for name, values in ratios.items():
        mean = sum(values) / len(values)
        rows.append({"temperature": temperature, "task": "mean over tasks", "contender": name, "ratio_to_plain": mean})
    return rows


def verdict(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """For every task: `auto` beside the best fixed setting of that task, and beside each drafter alone."""
    by_task: dict[tuple[object, object], dict[str, float]] = defaultdict(dict)
    for row in rows:
        by_task[row["temperature"], row["task"]][str(row["contender"])] = float(str(row["ratio_to_plain"]))
    found: list[dict[str, object]] = []
    for (temperature, task), ratios in by_task.items():
        fixed = {name: ratio for name, ratio in ratios.items() if name.startswith("fixed")}
        if "auto" not in ratios or not fixed:
            continue
        best = max(fixed, key=lambda name: fixed[name])
        auto = ratios["auto"]
        one: dict[str, object] = {"temperature": temperature, "task": task, "auto": auto, "best fixed": best}
        one["auto / best fixed"] = auto / max(fixed[best], 1.0)  # not to draft is a fixed setting, too
        for other in ("auto, effort alone", "auto, ngram alone", "auto, one effort", "heuristic", "confidence"):
            if other in ratios:
                one[f"auto / {other}"] = auto / ratios[other]
        found.append(one)
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="catalogue name, store, folder or .gguf")
    parser.add_argument("--grid", nargs="*", default=GRID, metavar="VIEW:EFFORT:LENGTH", help="fixed settings")
    parser.add_argument("--only", nargs="+", choices=list(ADAPTIVE), metavar="NAME", help="of what adapts, only these")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--per-task", type=int, default=2, help="prompts per task")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--runtime", default="native")
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    model = specdec.load(args.model, runtime=args.runtime, threads=args.threads)
    rows: list[dict[str, object]] = []
    for temperature in args.temperatures:
        rows += report(measure(args, model, temperature), temperature)
    for table in (rows, verdict(rows)):
        header = list(table[0]) if table else []
        print_table(header, [[row.get(key, "") for key in header] for row in table])
    settings = {"model": Path(args.model).name, "max_tokens": args.max_tokens, "per_task": args.per_task}
    write_json(args.json, {"settings": settings, "rows": rows, "verdict": verdict(rows)}, benchmark="policies")


if __name__ == "__main__":
    main()
