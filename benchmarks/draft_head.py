"""Draft steps by the size of their head, in units of the model's own plain step.

python benchmarks/draft_head.py smollm2-135m qwen2.5-coder-0.5b [--rounds 25] [--threads 2]

Passes take turns, medians count. How often drafts with such a head are kept, `sibling_replay.py --head N` prints.
"""

from __future__ import annotations

import argparse
import statistics

from common import print_machine, print_table

import specdec
from specdec.drafters.base import DrafterSetup
from specdec.drafters.head import Head
from specdec.runtimes.base import forward_one
from specdec.runtimes.timing import PassTimer, Timed

HEADS = ("all", "2048", "4096", "8192", "16384")
EFFORTS = (0.2, 0.5, 0.7, 1.0)
CONTEXT = 64


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="catalogue name, store, GGUF file or folder")
    parser.add_argument("--rounds", type=int, default=25, metavar="N", help="(default %(default)s)")
    parser.add_argument("--budget-s", type=float, default=20.0, metavar="S", help="a model, at most about")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with")
    args = parser.parse_args()
    print_machine()
    for name in args.models:
        print_steps(specdec.load(name, threads=args.threads), args.rounds, args.budget_s)


def print_steps(model: specdec.Model, rounds: int, budget_s: float) -> None:
    """The table of one model."""
    runtime, view = model.runtime, model.runtime.info.auto_draft[0]
    runtime.prepare(view)
    setup = DrafterSetup(runtime, "auto")
    heads = [Head("effort", size, setup, runtime, model.tokenizer).rows for size in HEADS]
    tokens = [number * 37 % model.config.vocab_size for number in range(CONTEXT)]
    cache = runtime.new_cache(2 * CONTEXT)
    forward_one(runtime, tokens, cache, logits="none")
    passes = [Timed(1)] + [Timed(1, effort, view, head=head) for effort in EFFORTS for head in heads]
    plain, *steps = [
        statistics.median(one) for one in PassTimer(runtime, cache, tokens, passes).run(rounds, budget_s=budget_s)
    ]
    print(f"{model.name}, view {view}: a plain step takes {1e3 * plain:.2f} ms")
    rows = [
        [f"{effort:g}", *[f"{one / plain:.2f}" for one in steps[at * len(HEADS) : (at + 1) * len(HEADS)]]]
        for at, effort in enumerate(EFFORTS)
    ]
    print_table(["effort", *[f"head={size}" for size in HEADS]], rows)


if __name__ == "__main__":
    main()
