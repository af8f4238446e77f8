"""Findings as text for a terminal, and as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from specdec.lab.bench.analysis import ALL, Row
from specdec.lab.bench.findings import Findings
from specdec.lab.bench.noise import Noise
from specdec.whole_file import write_output

_HEADER = ("", "tokens/s", "quartiles", "speed-up", "95 %", "of tasks", "accepted", "tok/round", "draft", "verify",
           "rest", "predicted")  # fmt: skip


def lines(findings: Findings) -> Iterator[str]:
    """The tables, line by line."""
    settings, machine = findings.settings, findings.machine
    threads = "" if settings["threads"] is None else f", {settings['threads']} threads"
    yield f"{settings['model']} on {settings['runtime']}{threads}; {machine['device']}, {machine['date']}"
    yield (
        f"{settings['prompts']} prompts of {len(settings['tasks'])} tasks, at most {settings['max_tokens']} tokens, "
        f"{settings['repeat']} times each; every answer is plain decoding's, token for token"
    )
    yield noise_sentence(findings.noise)
    for condition in findings.conditions:
        yield ""
        yield f"{condition} (ms: for each emitted token)"
        rows = [findings.row(condition, ALL, name) for name in findings.contenders]
        yield from aligned([_HEADER, *(_cells(row) for row in rows)])
        tasks = [task for task in findings.tasks if task != ALL]
        if len(tasks) > 1:
            yield ""
            yield f"{condition}: speed-up by task"
            body = [[name, *(_speed(findings.row(condition, t, name)) for t in tasks)] for name in findings.contenders]
            yield from aligned([["", *tasks], *body])


def noise_sentence(noise: Noise) -> str:
    """How noisy the machine was, in a sentence."""
    if noise.spread is None:
        return "noise: not known, since nothing was repeated"
    told = (
        f"plain decoding varies by {noise.spread:.1%} from one repetition to the next, which leaves a standard error "
        f"of {noise.error:.1%} in a speed-up"
    )
    if noise.is_too_loud:
        return f"TOO NOISY TO TELL: {told}, where at most {noise.limit:.0%} is allowed"
    return f"noise: {told} (at most {noise.limit:.0%} is allowed)"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells in columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def _cells(row: Row) -> list[str]:
    low, _, high = row.rate_quartiles
    return [
        row.contender,
        f"{row.tok_per_s:.4g}",
        f"{low:.4g}-{high:.4g}",
        _speed(row),
        "" if row.speedup_interval is None else "{:.2f}-{:.2f}".format(*row.speedup_interval),
        "" if row.mean_of_tasks is None else f"{row.mean_of_tasks:.2f}x",
        "" if row.acceptance is None else f"{row.acceptance:.0%}",
        f"{row.tokens_per_round:.2f}",
        f"{row.draft_ms:.3g}",
        f"{row.verify_ms:.3g}",
        f"{row.overhead_ms:.3g}",
        "" if row.predicted_speedup is None else f"{row.predicted_speedup:.2f}x",
    ]


def _speed(row: Row) -> str:
    return f"{row.speedup:.2f}x"


def write_csv(path: Path, findings: Findings) -> None:
    """Write the rows of the findings, as `write_output` does; pairs and triples take a column for each number.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    flat = [_flat(row) for row in findings.rows]
    writer.writerow(flat[0])
    writer.writerows(one.values() for one in flat)
    write_output(path, text.getvalue().encode())


def _flat(row: Row) -> dict[str, Any]:
    """The fields of a row by column; what is not known stays empty."""
    flat: dict[str, Any] = {}
    for name in (one.name for one in fields(row)):
        value = getattr(row, name)
        if name == "rate_quartiles":
            flat |= dict(zip(("tok_per_s_q1", "tok_per_s_median", "tok_per_s_q3"), value, strict=True))
        elif name == "speedup_interval":
            flat |= dict(zip(("speedup_low", "speedup_high"), value or ("", ""), strict=True))
        else:
            flat[name] = "" if value is None else value
    return flat
