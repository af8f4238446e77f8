"""What drafts gain by leaving out whole sublayers, against the same share of multiplications left out everywhere.

python benchmarks/skipped_sublayers.py smollm2-135m qwen2.5-coder-0.5b [--effort 0.6] [--passages 4] [--threads 2]

A sublayer is left out by an effort of nearly 0 of its last matrix, so hardly anything is added to the residual stream.
Each sublayer is left out alone first, on passages of the packaged text; those that harm least for their multiplications
are then left out together, and tried on the model's own continuations. A draft step is priced as if a skipped sublayer
took no time, which flatters skipping; the expected speed is that of drafts of the best fixed length (Leviathan et al.
2211.17192, section 3.1), with passes timed here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from common import print_machine, print_table

import specdec
from specdec.lab.text import calibration, split_passages
from specdec.lab.tune.costs import StepTimer, best_speedup
from specdec.lab.tune.divergence import Comparison
from specdec.lab.tune.sensitivity import advance, draft_step
from specdec.lab.tune.trial import try_schedules
from specdec.model.effort import EffortSchedule

COUNTS = (1, 2, 4, 8)
NOTHING = 1e-9
PLACES, TRIAL_TOKENS, PASSAGE_TOKENS = 5, 24, 96


@dataclass(frozen=True)
class Sublayer:
    """The attention or the MLP of a layer.

    Attributes:
        name: "layer 3, attn", for people.
        lasts: matrices whose results are added to the residual stream.
        share: of the model's multiplications, of all its matrices.
    """

    name: str
    lasts: tuple[str, ...]
    share: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="catalogue name, store, GGUF file or folder")
    parser.add_argument("--effort", type=float, default=0.6, metavar="E", help="of whole drafts (default 0.6)")
    parser.add_argument("--passages", type=int, default=4, metavar="N", help="(default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with")
    args = parser.parse_args()
    print_machine()
    for name in args.models:
        print_model(specdec.load(name, threads=args.threads), args.effort, args.passages)


def print_model(model: specdec.Model, effort: float, count: int) -> None:
    """The table of one model."""
    runtime, view = model.runtime, model.runtime.info.auto_draft[0]
    runtime.prepare(view)
    passages = split_passages(calibration(), model.tokenizer, count=count, length=PASSAGE_TOKENS)
    order = least_harmful(model, passages, view, effort)
    mean = {number: sum(one.share for one in order[:number]) for number in COUNTS}
    ways = {f"effort {effort:g}": (EffortSchedule(effort), 0.0)}
    for number in COUNTS:
        ways[f"{number} skipped"] = (without(order[:number], effort), mean[number])
        ways[f"effort {effort * (1 - mean[number]):.3f}"] = (EffortSchedule(effort * (1 - mean[number])), 0.0)
    schedules = [schedule for schedule, _ in ways.values()]
    timer = StepTimer(runtime, passages[0], repeats=15)
    verify_s, taken = timer.exact(), timer.drafts(schedules, view)
    starts = [tokens[: len(tokens) // 2] for tokens in passages]
    agreement, kl = try_schedules(runtime, starts, schedules, view=view, length=TRIAL_TOKENS, done=lambda _: None)
    rows = []
    for at, (label, (_, skipped)) in enumerate(ways.items()):
        seconds = taken[0] * (1 - skipped) if skipped else taken[at]
        speed, length = best_speedup(agreement[at], seconds, verify_s)
        rows.append(
            [label, f"{agreement[at]:.3f}", f"{kl[at]:.3f}", f"{seconds / verify_s[1]:.2f}", f"{speed:.2f}", length]
        )
    print(f"\n{model.name}, view {view}; skipped in this order: {'; '.join(one.name for one in order[: COUNTS[-1]])}")
    print_table(["drafts", "agreement", "KL (nats)", "step, of a plain one", "expected speed", "length"], rows)


def least_harmful(model: specdec.Model, passages: list[list[int]], view: str, effort: float) -> list[Sublayer]:
    """The sublayers, those first whose absence costs the least divergence for the multiplications that it saves."""
    runtime, found = model.runtime, sublayers(model)
    harm = np.zeros(len(found))
    for tokens in passages:
        cache = runtime.new_cache(len(tokens))
        for place in np.linspace(len(tokens) // 4, len(tokens) - 1, PLACES).astype(int).tolist():
            advance(runtime, cache, tokens[:place])
            right = Comparison(draft_step(runtime, cache, tokens[place], EffortSchedule(), view))
            for at, one in enumerate(found):
                harm[at] += right.divergence(draft_step(runtime, cache, tokens[place], without([one], effort), view))
    rate = harm / [one.share for one in found]
    return [found[at] for at in np.argsort(rate)]


def without(left_out: list[Sublayer], effort: float) -> EffortSchedule:
    """`effort` everywhere, and nearly nothing of what the sublayers add."""
    return EffortSchedule(effort, {name: NOTHING for one in left_out for name in one.lasts})


def sublayers(model: specdec.Model) -> list[Sublayer]:
    """Both sublayers of every layer."""
    sizes = {name: outputs * inputs for name, (outputs, inputs) in model.config.matrices().items()}
    total, found = sum(sizes.values()), []
    for layer in range(model.config.num_layers):
        for kind, last in (("attn", "o"), ("mlp", "down")):
            names = [name for name in sizes if name.startswith(f"layers.{layer}.{kind}.")]
            lasts = tuple(name for name in names if name.endswith(f".{last}"))
            found.append(Sublayer(f"layer {layer}, {kind}", lasts, sum(sizes[name] for name in names) / total))
    return found


if __name__ == "__main__":
    main()
