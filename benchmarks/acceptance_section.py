"""What BENCHMARKS.md shows of `acceptance_map.py`: kept shares by entropy and by position, for each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from figures import heat_map
from tables import markdown

ACCEPTANCE = (
    "acceptance-smollm2-135m-dithered.json",
    "acceptance-smollm2-135m.json",
    "acceptance-qwen2.5-coder-0.5b-dithered.json",
    "acceptance-qwen2.5-coder-0.5b.json",
    "acceptance-qwen2.5-coder-1.5b-dithered.json",
    "acceptance-qwen2.5-coder-1.5b.json",
)


def acceptance_table(records: list[dict[str, Any]]) -> str:
    """Kept shares by entropy of the draft step, with a heat map beside them, and by position; a part for each model."""
    parts = []
    for record in records:
        found = _Acceptance(record)
        positions = sorted({row["position"] for row in found.rows})
        parts += [
            f"![{found.model}](benchmarks/results/{found.file_name})",
            markdown([f"{found.model}, entropy in nats", *found.classes], _shares(found.labels, found.by_entropy)),
            markdown(
                [f"{found.model}, position", *map(str, positions)],
                _shares(found.labels, found.cells("position", positions)),
            ),
        ]
    return "\n\n".join(parts)


def acceptance_figures(records: list[dict[str, Any]]) -> dict[str, str]:
    """A heat map of kept shares for each model."""
    drawn = {}
    for record in records:
        found = _Acceptance(record)
        drawn[found.file_name] = heat_map(
            f"{found.model}: share of drafted tokens kept",
            found.classes,
            found.labels,
            [[_kept(cell)[0] for cell in line] for line in found.by_entropy],
            column_title="entropy, nats",
        )
    return drawn


class _Acceptance:
    """A record of `acceptance_map.py` in rows and columns."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.rows: list[dict[str, Any]] = record["results"]["rows"]
        self.model: str = record["results"]["settings"]["model"].removesuffix(".store")
        self.file_name = f"acceptance-{self.model}.svg"
        self._settings = list(dict.fromkeys((row["view"], row["effort"]) for row in self.rows))
        self.labels = [f"{view} {effort:g}" for view, effort in self._settings]
        numbers = sorted({row["entropy_class"] for row in self.rows})
        self.classes = [next(row["entropy"] for row in self.rows if row["entropy_class"] == c) for c in numbers]
        self.by_entropy = self.cells("entropy_class", numbers)

    def cells(self, key: str, values: Sequence[int]) -> list[list[list[dict[str, Any]]]]:
        """For every setting and value of a key, the rows that have both."""
        return [
            [[r for r in self.rows if (r["view"], r["effort"], r[key]) == (*one, value)] for value in values]
            for one in self._settings
        ]


def _kept(rows: list[dict[str, Any]]) -> tuple[float | None, int]:
    """Share kept, or None where fewer than 5 tokens were looked at, and how many were."""
    looked = sum(row["looked_at"] for row in rows)
    return (sum(row["kept"] for row in rows) / looked if looked >= 5 else None), looked


def _shares(labels: list[str], lines: list[list[list[dict[str, Any]]]]) -> list[list[str]]:
    cells = [[(_kept(cell)) for cell in line] for line in lines]
    return [
        [label, *(f"{share:.2f} ({count})" if share is not None else f"- ({count})" for share, count in line)]
        for label, line in zip(labels, cells, strict=True)
    ]
