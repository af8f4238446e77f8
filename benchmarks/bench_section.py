"""What BENCHMARKS.md shows of `specdec bench`: tables and plots, from its JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables import markdown

from specdec.bench.analysis import ALL, Row
from specdec.bench.findings import Findings
from specdec.bench.grid import PLAIN
from specdec.bench.plots import PLOTS, Plot
from specdec.bench.report import draw, plot_name
from specdec.bench.table import noise_sentence
from specdec.bench.theme import standalone


def bench_table(records: list[dict[str, Any]]) -> str:
    """`specdec bench`: for every model and condition, all tasks together, then speed-up by task; plots behind."""
    parts = []
    for record in records:
        findings = Findings.from_record(record)
        tasks = [task for task in findings.tasks if task != ALL]
        settings = findings.settings
        for condition in findings.conditions:
            rows = [findings.row(condition, ALL, name) for name in findings.contenders]
            parts += [
                f"### {settings['model']}, {condition}",
                f"{settings['prompts']} prompts, at most {settings['max_tokens']} tokens, {settings['repeat']} times "
                f"each; {noise_sentence(findings.noise)}.",
                markdown(_BENCH_HEADER, [_bench_cells(row) for row in rows]),
                markdown(
                    ["speed-up", *tasks],
                    [
                        [n, *(f"{findings.row(condition, t, n).speedup:.2f}" for t in tasks)]
                        for n in findings.contenders
                    ],
                ),
                _beside_best_fixed(findings, condition, tasks),
            ]
            parts += [
                f"![{plot.title}](benchmarks/results/{_bench_file(record, findings, plot, condition)})"
                for plot in _BENCH_PLOTS
            ]
    return "\n\n".join(part for part in parts if part)


_BENCH_HEADER = (
    "", "tokens/s (quartiles)", "speed-up (95 %)", "mean of tasks", "accepted", "tokens a round",
    "draft, verify, rest: ms a token", "predicted",
)  # fmt: skip


def _bench_cells(row: Row) -> list[str]:
    low, _, high = row.rate_quartiles
    interval = "" if row.speedup_interval is None else " ({:.2f} to {:.2f})".format(*row.speedup_interval)
    return [
        row.contender,
        f"{row.tok_per_s:.1f} ({low:.1f} to {high:.1f})",
        f"{row.speedup:.2f}{interval}",
        f"{row.mean_of_tasks:.2f}",
        "-" if row.acceptance is None else f"{row.acceptance:.2f}",
        f"{row.tokens_per_round:.2f}",
        f"{row.draft_ms:.1f}, {row.verify_ms:.1f}, {row.overhead_ms:.2f}",
        "-" if row.predicted_speedup is None else f"{row.predicted_speedup:.2f}",
    ]


def _beside_best_fixed(findings: Findings, condition: str, tasks: Sequence[str]) -> str:
    """`auto` over the best fixed setting of each task, plain decoding among them; empty without several of those."""
    contenders = findings.settings["contenders"]
    fixed = [name for name in findings.contenders if contenders[name].get("policy", "").startswith("fixed")]
    if "auto" not in findings.contenders or len(fixed) < 3:
        return ""
    cells = []
    for task in tasks:
        best = max([PLAIN, *fixed], key=lambda name, task=task: findings.row(condition, task, name).speedup)
        ratio = findings.row(condition, task, "auto").speedup / findings.row(condition, task, best).speedup
        cells.append(f"{ratio:.2f} ({best})")
    return markdown(["auto over the best fixed", *tasks], [["", *cells]])


_BENCH_PLOTS = tuple(plot for plot in PLOTS if plot.name in ("speed", "speedup", "places", "prediction"))


def _bench_file(record: dict[str, Any], findings: Findings, plot: Plot, condition: str) -> str:
    return f"{record['file'].removesuffix('.json')}-{plot_name(plot, findings, condition)}.svg"


def bench_figures(records: list[dict[str, Any]]) -> dict[str, str]:
    """The plots that `bench_table` names."""
    drawn = {}
    for record in records:
        findings = Findings.from_record(record)
        for one in draw(findings, plots=_BENCH_PLOTS):
            drawn[_bench_file(record, findings, one.plot, one.condition)] = standalone(one.svg)
    return drawn
