"""What BENCHMARKS.md shows of policies that `policy_replay.py` replayed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from figures import dot_plot
from tables import markdown

REPLAYED = (
    "policy-replay-qwen2.5-coder-1.5b-dithered.json",
    "policy-replay-qwen2.5-coder-1.5b.json",
    "policy-replay-qwen2.5-coder-0.5b-dithered.json",
    "policy-replay-smollm2-135m-dithered.json",
    "policy-replay-smollm2-135m.json",
)
_DRAWN = (
    "auto",
    "auto, effort alone",
    "auto, ngram alone",
    "heuristic",
    "confidence",
    "best fixed setting of each task",
)


class _Replay(NamedTuple):
    """The rows of a replay at one temperature."""

    title: str
    file_name: str
    columns: list[str]
    rows: list[dict[str, Any]]


def _replays(record: dict[str, Any]) -> Iterator[_Replay]:
    results = record["results"]
    model = results["settings"]["model"].removesuffix(".store")
    for temperature in sorted({row["temperature"] for row in results["rows"]}):
        rows = [row for row in results["rows"] if row["temperature"] == temperature]
        columns = [key for key in rows[0] if key not in ("temperature", "contender")]
        file_name = f"{record['file'].removesuffix('.json')}.t{temperature:g}.svg"
        yield _Replay(f"{model}, temperature {temperature:g}", file_name, columns, rows)


def replay_table(records: list[dict[str, Any]]) -> str:
    """Speed over plain decoding at constant costs, with a plot, and what signals tell; a part for each model."""
    parts = []
    for record in records:
        for one in _replays(record):
            table = [[row["contender"], *(f"{row[column]:.2f}" for column in one.columns)] for row in one.rows]
            parts += [
                f"![{one.title}](benchmarks/results/{one.file_name})",
                markdown([one.title, *one.columns], table),
            ]
        results = record["results"]
        model = results["settings"]["model"].removesuffix(".store")
        told = [key for key in results["signals"][0] if key != "temperature"]
        table = [[row["temperature"], *(row[key] for key in told)] for row in results["signals"]]
        parts.append(markdown([f"{model}, temperature", *told], table))
    return "\n\n".join(parts)


def replay_figures(records: list[dict[str, Any]]) -> dict[str, str]:
    """The plots that `replay_table` names."""
    return {
        one.file_name: dot_plot(
            one.title,
            one.columns,
            {row["contender"]: [row[c] for c in one.columns] for row in one.rows if row["contender"] in _DRAWN},
            axis="tokens a second over plain decoding",
        )
        for record in records
        for one in _replays(record)
    }
