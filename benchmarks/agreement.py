"""How often a draft agrees with the dense model, and what its step costs: by draft view and effort.

The model writes a greedy answer at effort 1.0. At every position one draft step runs over the exact history, and its
logits are compared with the dense ones: top-1, top-2 and KL. No drafted token enters the history, so the figures
describe single steps. The cost is the median, over positions, of the draft step's time over that of the dense step at
the same position; all drafts take turns at every position, so none finds its weights in a cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from common import PROMPTS, add_json_option, log_softmax, print_machine, print_table, write_json

import specdec
from specdec.formats import open_source
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import Cache, forward_one
from specdec.runtimes.timing import timed
from specdec.store import BucketLayout, Store, convert

DENSE = EffortSchedule(1.0)
# Measured by default, as far as the runtime has these views.
USUAL = {"bucket": "0.15,0.25,0.4,0.6", "own": "0.35,0.5,0.75", "nested": "0.5,1.0", "int4": "0.35,0.5,1.0"}


@dataclass(frozen=True)
class Draft:
    """One column of the table: a draft view and its schedule."""

    view: str
    effort: float
    schedule: EffortSchedule


@dataclass
class Tally:
    """Counts over positions for one draft."""

    top1: list[bool] = field(default_factory=list)
    top2: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)

    def add(self, dense: np.ndarray, draft: np.ndarray, cost: float) -> None:
        """Compare one position: dense and draft logits, both (V,), and what the draft took in dense steps."""
        self.cost.append(cost)
        choice = int(dense.argmax())
        best = np.argpartition(draft, -2)[-2:]
        self.top1.append(int(draft.argmax()) == choice)
        self.top2.append(choice in best)
        p, q = log_softmax(dense), log_softmax(draft)
        self.kl.append(float((np.exp(p) * (p - q)).sum()))


def parse_drafts(texts: list[str], head: float | None) -> list[Draft]:
    """`view:e1,e2,…` arguments as drafts; the logits layer at `head`, or at the same effort when it is None."""
    drafts = []
    for text in texts:
        view, _, efforts = text.partition(":")
        for effort in (float(e) for e in efforts.split(",")):
            rules = {} if head is None else {"head": head}
            drafts.append(Draft(view, effort, EffortSchedule(effort, rules)))
    return drafts


def step(model: Model, token: int, cache: Cache, draft: Draft) -> tuple[np.ndarray, float]:
    """Logits (V,) of one row, and seconds; the cache is as it was."""
    result, seconds = timed(model.runtime, [token], cache, effort=draft.schedule, view=draft.view)
    return result.logits[0], seconds


def answer_positions(model: Model, prompt: str, max_tokens: int, drafts: list[Draft], tallies: list[Tally]) -> int:
    """Write one greedy answer and tally every draft at each of its positions; returns the number of positions."""
    assert model.tokenizer is not None
    text = model.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
    ids = model.tokenizer.encode(text)
    cache = model.runtime.new_cache(len(ids) + max_tokens + 1)
    forward_one(model.runtime, ids[:-1], cache, effort=DENSE, logits="last")
    token, count = ids[-1], 0
    while count < max_tokens:
        drafted = [step(model, token, cache, draft) for draft in drafts]
        dense, dense_s = step(model, token, cache, Draft("exact", 1.0, DENSE))
        forward_one(model.runtime, [token], cache, effort=DENSE, logits="none")
        for tally, (logits, seconds) in zip(tallies, drafted, strict=True):
            tally.add(dense, logits, seconds / dense_s)
        token, count = int(dense.argmax()), count + 1
        if token in model.tokenizer.eos_ids:
            break
    return count


def measure(model: Model, drafts: list[Draft], max_tokens: int) -> list[dict[str, float | str]]:
    """Rows of the table for one model."""
    tallies = [Tally() for _ in drafts]
    for draft in drafts:
        model.runtime.prepare(draft.view)
    for prompt in PROMPTS:
        done = answer_positions(model, prompt, max_tokens, drafts, tallies)
        print(f"  {done} positions: {prompt[:50]}…", file=sys.stderr)
    rows = []
    for draft, tally in zip(drafts, tallies, strict=True):
        share = float(np.mean(tally.top1))
        rows.append(
            {
                "view": draft.view,
                "effort": draft.effort,
                "top1": share,
                "standard_error": float(np.sqrt(share * (1 - share) / len(tally.top1))),
                "top2": float(np.mean(tally.top2)),
                "kl": float(np.mean(tally.kl)),
                "positions": len(tally.top1),
                "cost": float(np.median(tally.cost)),
            }
        )
    return rows


def open_model(args: argparse.Namespace, folder: Path) -> Model:
    """The model to measure: as it is, or converted for this run when a layout or dither seed is given."""
    if args.layout is None and args.dither is None:
        return specdec.load(args.model, runtime=args.runtime)
    layout = BucketLayout() if args.layout is None else BucketLayout(sum(args.layout), tuple(args.layout))
    with_source = open_source(Path(args.model))
    try:
        store = convert(with_source, folder / "store", layout=layout, dither=args.dither)
    finally:
        with_source.close()
    return specdec.load(Store.open(store).path, runtime=args.runtime)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="catalogue name, store, folder or .gguf")
    parser.add_argument(
        "--draft", nargs="+", metavar="VIEW:E,E", help="default: bucket, or own and nested, and int4 at several efforts"
    )
    parser.add_argument(
        "--head", type=float, default=1.0, help="effort of the logits layer (default 1.0; 0: as the rest)"
    )
    parser.add_argument(
        "--layout", type=lambda s: [int(x) for x in s.split(",")], help="tier sizes, for instance 16 or 4,4,4,4"
    )
    parser.add_argument(
        "--dither", type=int, metavar="SEED", help="measure the dithered twin (needs a .gguf or folder)"
    )
    parser.add_argument("--max-tokens", type=int, default=100, help="positions per prompt")
    parser.add_argument("--runtime", default="auto")
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(args, Path(folder))
        usual = [f"{view}:{efforts}" for view, efforts in USUAL.items() if view in model.runtime.views()]
        drafts = parse_drafts(args.draft or usual, args.head or None)
        rows = measure(model, drafts, args.max_tokens)
    print(f"{args.model}, runtime {model.runtime.info.name}, dither {args.dither}, layout {model.store.layout}")
    header = list(rows[0])
    print_table(header, [[row[key] for key in header] for row in rows])
    settings = {"model": Path(args.model).name, "dither": args.dither, "layout": asdict(model.store.layout)}
    settings["head"] = args.head
    write_json(args.json, {"settings": settings, "rows": rows}, benchmark="agreement")


if __name__ == "__main__":
    main()
