"""Policies and drafters against each other, task by task: plain decoding, a grid of fixed settings, and what adapts.

Measured as `specdec bench` does it, with each prompt asked once; beside the rows there is a verdict, which compares
`auto` with the best fixed setting of every task. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from common import add_json_option, print_machine, print_table, write_json

import specdec
from specdec import paths
from specdec.bench.analysis import ALL, analyse
from specdec.bench.grid import PLAIN, Condition, Contender, Grid, parse_contender
from specdec.bench.journal import Journal
from specdec.bench.plan import Plan
from specdec.bench.prompts import BUILT_IN, load_prompts
from specdec.bench.run import measure
from specdec.bench.sample import Sample
from specdec.progress import StreamProgress

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


def plan(args: argparse.Namespace) -> Plan:
    """What to measure: plain decoding, the grid of fixed settings, and what adapts."""
    found = [Contender(PLAIN, {"speculate": False})]
    found += [Contender(f"fixed {setting}", parse_contender(setting).options) for setting in args.grid]
    found += [Contender(name, ADAPTIVE[name]) for name in args.only or ADAPTIVE]
    return Plan(
        grid=Grid(tuple(found), tuple(Condition(temperature=degrees, seed=1) for degrees in args.temperatures)),
        prompts=tuple(load_prompts(BUILT_IN, tasks=args.tasks, per_task=args.per_task)),
        max_tokens=args.max_tokens,
        repeat=1,
    )


def report(plan: Plan, samples: list[Sample]) -> list[dict[str, object]]:
    """A row for each task and contender, and the mean over tasks of the ratio to plain decoding."""
    degrees = {one.name: one.temperature for one in plan.grid.conditions}
    rows, means = [], []
    for row in analyse(plan, samples):
        one: dict[str, object] = {"temperature": degrees[row.condition], "task": row.task, "contender": row.contender}
        if row.task == ALL:
            means.append(one | {"task": "mean over tasks", "ratio_to_plain": row.mean_of_tasks})
            continue
        rows.append(
            one
            | {
                "tok_per_s": row.tok_per_s,
                "median": row.rate_quartiles[1],
                "ratio_to_plain": row.speedup,
                "drafted_per_round": row.drafted * row.tokens_per_round / row.tokens,
                "accepted_share": row.acceptance or 0.0,
                "overhead_share": row.overhead_ms / (row.draft_ms + row.verify_ms + row.overhead_ms),
            }
        )
    return rows + means


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
    wanted = plan(args)
    journal = Journal(paths.home() / "bench" / wanted.file_name(model), wanted.header(model))
    rows = report(wanted, measure(model, wanted, journal, progress=StreamProgress()))
    journal.close()
    journal.path.unlink()
    for table in (rows, verdict(rows)):
        header = list(table[0]) if table else []
        print_table(header, [[row.get(key, "") for key in header] for row in table])
    settings = {"model": Path(args.model).name, "max_tokens": args.max_tokens, "per_task": args.per_task}
    write_json(args.json, {"settings": settings, "rows": rows, "verdict": verdict(rows)}, benchmark="policies")


if __name__ == "__main__":
    main()
