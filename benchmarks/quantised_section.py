"""The table of BENCHMARKS.md about draft views of quantised targets."""

from __future__ import annotations

from typing import Any

from tables import markdown

KINDS = ("q", "o", "gate", "down", "head")


def quantised_table(records: list[dict[str, Any]]) -> str:
    """One row for every model, view and effort, the cheapest first."""
    rows = []
    for record in records:
        settings = record["results"]["settings"]
        name = settings["model"].removesuffix(".store").removesuffix("-keep")
        for row in sorted(record["results"]["rows"], key=lambda row: float(row["bytes_share"])):
            cosines = [f"{row['cosine'][kind]:.4f}" if kind in row["cosine"] else "" for kind in KINDS]
            rows.append([name, row["view"], row["effort"], row["bytes_share"], row["top1"], row["kl"], *cosines])
    header = ["model", "view", "effort", "bytes of the target's", "top-1", "KL, nats"]
    return markdown([*header, *(f"cosine {kind}" for kind in KINDS)], rows)
