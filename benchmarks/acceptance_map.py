"""Which drafted tokens are kept: by draft view, effort, entropy of the draft step, and position within the round.

The model drafts for itself on the prompts of every task with a fixed length, and every drafted token that the verifier
got to look at (all tokens before it in the round were kept) counts once: kept or not, with the entropy of the logits
that it was drawn from. The output is plain decoding's, whatever is drafted.

    python benchmarks/acceptance_map.py smollm2-135m-dithered.store
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import add_json_option, print_machine, print_table, write_json
from specdec.policies.fixed import FixedPolicy

import specdec
from specdec.engine.policy import RoundOutcome
from specdec.lab.bench.prompts import BUILT_IN, load_prompts

ENTROPIES = (0.01, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5)  # nats; bounds of the classes
SETTINGS = ("int4:1.0", "int4:0.7", "int4:0.5", "int4:0.35", "bucket8:0.25", "bucket8:0.15")

Counts = dict[tuple[int, int], list[int]]  # (class of entropy, position) -> [looked at, kept]


class Recorder(FixedPolicy):
    """Drafts a fixed number of tokens at a fixed effort and counts what becomes of each."""

    def __init__(self, length: int, effort: float, counts: Counts) -> None:
        super().__init__(length=length, effort=effort)
        self.counts = counts

    def observe(self, outcome: RoundOutcome) -> None:
        """Count the tokens up to the first one that was refused."""
        for signals in outcome.signals[: outcome.accepted + 1]:
            cell = self.counts[bisect_right(ENTROPIES, signals.distribution.entropy), signals.index]
            cell[0] += 1
            cell[1] += signals.index < outcome.accepted


def class_name(index: int) -> str:
    """A class of entropy in words."""
    low = ENTROPIES[index - 1] if index else 0.0
    return f"{low:g}-{ENTROPIES[index]:g}" if index < len(ENTROPIES) else f"over {low:g}"


def measure(model: Any, setting: str, texts: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one setting: every class of entropy and position that occurred."""
    view, effort = setting.split(":")
    counts: Counts = defaultdict(lambda: [0, 0])
    for number, text in enumerate(texts):
        policy = Recorder(args.length, float(effort), counts)
        specdec.generate(model, text, max_tokens=args.max_tokens, draft_view=view, drafter="effort", policy=policy)
        print(f"  {setting} {number + 1}/{len(texts)}", file=sys.stderr)
    return [
        {"view": view, "effort": float(effort), "entropy": class_name(index), "entropy_class": index,
         "position": position + 1, "looked_at": cell[0], "kept": cell[1]}
        for (index, position), cell in sorted(counts.items())
    ]  # fmt: skip


def share(rows: list[dict[str, Any]]) -> str:
    """Kept of looked at, with the count."""
    looked = sum(row["looked_at"] for row in rows)
    return f"{sum(row['kept'] for row in rows) / looked:.2f} ({looked})" if looked else "-"


def tables(rows: list[dict[str, Any]]) -> None:
    """Print kept shares by entropy and by position."""
    settings = list(dict.fromkeys((row["view"], row["effort"]) for row in rows))
    for key in ("entropy_class", "position"):
        values = sorted({row[key] for row in rows})
        lines = [
            [f"{view}:{effort:g}"]
            + [share([r for r in rows if (r["view"], r["effort"], r[key]) == (view, effort, v)]) for v in values]
            for view, effort in settings
        ]
        names = [class_name(v) if key == "entropy_class" else str(v) for v in values]
        print_table(["entropy, nats" if key == "entropy_class" else "position", *names], lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="catalogue name, store, folder or .gguf")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), metavar="VIEW:EFFORT")
    parser.add_argument("--length", type=int, default=6, help="tokens drafted a round (default %(default)s)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--per-task", type=int, default=1, help="prompts per task (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    add_json_option(parser)
    args = parser.parse_args()
    model = specdec.load(args.model, runtime=args.runtime, threads=args.threads)
    texts = [str(prompt.content) for prompt in load_prompts(BUILT_IN, tasks=args.tasks, per_task=args.per_task)]
    rows = [row for setting in args.settings for row in measure(model, setting, texts, args)]
    print_machine()
    tables(rows)
    settings = {"model": Path(args.model).name, "length": args.length, "prompts": len(texts)}
    write_json(args.json, {"settings": settings, "rows": rows}, benchmark="acceptance_map")


if __name__ == "__main__":
    main()
