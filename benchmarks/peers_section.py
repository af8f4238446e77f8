"""What BENCHMARKS.md shows of `peers.py`: every contender's speed over specdec's plain decoding, by task."""

from __future__ import annotations

from typing import Any

from tables import markdown

PEERS = (
    "peers-smollm2-135m.json",
    "peers-qwen2.5-coder-1.5b.json",
    "peers-qwen2.5-coder-1.5b-q8_0.json",
    "peers-qwen2.5-coder-1.5b-q4_k_m.json",
)


def peers_table(records: list[dict[str, Any]]) -> str:
    """A table for each model, with the versions of the peers and those that were left out."""
    parts = []
    for record in records:
        results = record["results"]
        cells = {(row["contender"], row["task"]): row for row in results["rows"]}
        tasks = [task for task in dict.fromkeys(task for _, task in cells) if task != "all"]
        table = []
        for name in dict.fromkeys(name for name, _ in cells):
            total = cells[name, "all"]
            ratios = [f"{cells[name, task]['ratio_to_plain']:.2f}" if (name, task) in cells else "-" for task in tasks]
            accepted = "-" if total["accepted_share"] is None else f"{total['accepted_share']:.2f}"
            table.append([name, f"{total['tok_per_s']:.1f}", f"{total['ratio_to_plain']:.2f}", *ratios, accepted])
        parts.append(f"### {results['settings']['model']}, specdec on {results['settings']['specdec_weights']}")
        parts.append(markdown(["", "tokens/s", "mean over tasks", *tasks, "accepted"], table))
        told = [f"{name}: {version}" for name, version in results["versions"].items()]
        told += [f"{name} was left out: {why}" for name, why in results["skipped"].items()]
        parts.append("; ".join(told) + ".")
    return "\n\n".join(parts)
