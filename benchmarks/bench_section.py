"""What BENCHMARKS.md shows of `specdec bench`: tables and plots, from its JSON files."""

from __future__ import annotations

from typing import Any

from tables import markdown

from specdec.lab.bench.analysis import ALL, Row
from specdec.lab.bench.findings import Findings
from specdec.lab.bench.grid import PLAIN
from specdec.lab.bench.plots import PLOTS, Plot
from specdec.lab.bench.report import draw, plot_name
from specdec.lab.bench.table import noise_sentence
from specdec.lab.bench.theme import standalone


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
            ]
            header, ratios = verdict(findings, condition)
            if ratios:
                parts.append(markdown(header, ratios))
            parts += [
                f"![{plot.title}](benchmarks/results/{_bench_file(record, findings, plot, condition)})"
                for plot in _BENCH_PLOTS
            ]
    return "\n\n".join(parts)


_BENCH_HEADER = (
    "", "tokens/s (quartiles)", "speed-up (95 %)", "mean of tasks", "accepted", "tokens a round",
    "draft, verify, rest: ms a token (share of the rest)", "predicted",
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
        f"{row.draft_ms:.1f}, {row.verify_ms:.1f}, {row.overhead_ms:.2f} ({_rest(row):.1%})",
        "-" if row.predicted_speedup is None else f"{row.predicted_speedup:.2f}",
    ]


def _rest(row: Row) -> float:
    """Share of the time outside draft and verify passes."""
    return row.overhead_ms / (row.draft_ms + row.verify_ms + row.overhead_ms)


def verdict(findings: Findings, condition: str) -> tuple[list[str], list[list[str]]]:
    """How `auto` does beside the best fixed setting of each task, plain decoding among them, and beside everything
    else: a header and rows of ratios; no rows unless it stands beside several fixed settings."""
    contenders, tasks = findings.settings["contenders"], [task for task in findings.tasks if task != ALL]
    fixed = [name for name in findings.contenders if contenders[name].get("policy", "").startswith("fixed")]
    header = ["auto over", *tasks, "mean of tasks"]
    if "auto" not in findings.contenders or len(fixed) < 3:
        return header, []

    def speedup(name: str, task: str) -> float:
        return findings.row(condition, task, name).speedup

    rows = []
    best = {task: max([PLAIN, *fixed], key=lambda name, task=task: speedup(name, task)) for task in tasks}
    ratios = [speedup("auto", task) / speedup(best[task], task) for task in tasks]
    cells = [f"{ratio:.2f} ({best[task]})" for ratio, task in zip(ratios, tasks, strict=True)]
    rows.append(["the best fixed setting of each task", *cells, f"{sum(ratios) / len(ratios):.2f}"])
    for other in (PLAIN, *(name for name in findings.contenders if name not in (PLAIN, "auto", *fixed))):
        ratios = [speedup("auto", task) / speedup(other, task) for task in tasks]
        rows.append([other, *(f"{ratio:.2f}" for ratio in ratios), f"{sum(ratios) / len(ratios):.2f}"])
    return header, rows


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
