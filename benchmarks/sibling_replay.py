"""What second and third choices of a draft would bring as further rows of the verify pass, over recorded answers.

python benchmarks/lookup_replay.py qwen2.5-coder-0.5b --answers answers.jsonl
python benchmarks/sibling_replay.py qwen2.5-coder-0.5b --answers answers.jsonl [--effort 0.7] [--prompts 14]

Rounds run over each answer as it is: the model drafts through its view and the draft head, what equals the answer
is kept, and the cache goes on at verify quality. Siblings are leaves beside a drafted token, placed where the chance
that the path up to there is kept, times that of the choice, is highest. A verify pass of M rows costs 1 + R (M - 1)
plain steps, for R of a GPU and of a small CPU, a draft step what `--step` says; of each number of siblings the best
length counts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import print_machine, print_table

import specdec
from specdec.drafters.base import DrafterSetup
from specdec.drafters.head import Head
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows, forward_one

LONGEST, CHOICES = 6, 3
ROWS = {"GPU, 0.02 a row": 0.02, "0.05 a row": 0.05, "small CPU, 0.15 a row": 0.15}
SIBLINGS = (0, 1, 2, 4)


@dataclass(frozen=True, slots=True)
class Step:
    """A drafted token: the chances of the likeliest choices, and which of them the answer has, -1 for none."""

    chances: tuple[float, ...]
    right: int


def main() -> None:
    """Draft, and print what siblings would have brought."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="of lookup_replay.py")
    parser.add_argument("--prompts", type=int, default=14, metavar="N", help="answers to take (default %(default)s)")
    parser.add_argument("--view", help="draft view (default: the runtime's fastest)")
    parser.add_argument("--effort", type=float, default=0.7, metavar="E", help="of draft steps (default %(default)s)")
    parser.add_argument("--head", default="auto", metavar="N", help="frequent tokens to score; all (default auto)")
    parser.add_argument("--step", type=float, nargs="+", default=[0.3, 0.6], metavar="S", help="costs of a draft step")
    args = parser.parse_args()
    model = specdec.load(args.model)
    answers = [json.loads(line) for line in args.answers.read_text().splitlines()][: args.prompts]
    view = args.view or model.runtime.info.auto_draft[0]
    rounds = [one for answer in answers for one in drafted(model, answer, view, args.effort, args.head)]
    print_machine()
    print(f"{len(answers)} answers, {len(rounds)} rounds, view {view} at effort {args.effort}, head {args.head}")
    print_choices(rounds)
    print_gains(rounds, args.step)


def drafted(
    model: specdec.Model, answer: dict[str, list[int]], view: str, effort: float, asked: str
) -> list[list[Step]]:
    """The rounds of one answer, each with the steps up to the first refused token, or `LONGEST`."""
    runtime, prompt, tokens = model.runtime, answer["prompt"], answer["tokens"]
    text, cache = [*prompt, *tokens], runtime.new_cache(len(prompt) + len(tokens) + LONGEST)
    full = resolve_efforts(1.0, model.config)
    head = Head("effort", asked, DrafterSetup(runtime, "auto"), runtime, model.tokenizer)
    forward_one(runtime, prompt[:-1], cache, logits="none")
    at, rounds = len(prompt), list[list[Step]]()
    while at < len(text) - 1:
        head.follow(text[:at], model.config.vocab_size)
        steps, held = list[Step](), cache.length
        for token in text[at - 1 : at - 1 + min(LONGEST, len(text) - at)]:
            logits = forward_one(runtime, [token], cache, effort=effort, view=view, head=head.rows).logits[0]
            steps.append(step(logits, text[at + len(steps)]))
            if steps[-1].right != 0:
                break
        cache.trim(held)
        kept = sum(one.right == 0 for one in steps)
        verified = runtime.forward([Rows(cache, text[at - 1 : at + kept], full, likely=head.likely)])[0]
        if verified.likely:
            head.ranked(verified.likely, range(kept))
        rounds.append(steps)
        at += kept + 1
    return rounds


def step(logits: np.ndarray, right: int) -> Step:
    """What a draft step shows."""
    best = np.argpartition(logits, len(logits) - CHOICES)[-CHOICES:]
    best = best[np.argsort(-logits[best])]
    weights = np.exp(logits - logits[best[0]])
    found = np.flatnonzero(best == right)
    return Step(tuple((weights[best] / weights.sum()).tolist()), int(found[0]) if len(found) else -1)


def print_choices(rounds: list[list[Step]]) -> None:
    """How often the first choice is kept, and which one is right where it is not."""
    steps = [one for steps in rounds for one in steps]
    missed = [one for one in steps if one.right != 0]
    shares = [sum(one.right == choice for one in missed) / max(1, len(missed)) for choice in range(1, CHOICES)]
    kept = 1 - len(missed) / len(steps)
    print(f"first choice kept {kept:.3f}; of the others the second is right {shares[0]:.2f}, the third {shares[1]:.2f}")


def print_gains(rounds: list[list[Step]], costs: list[float]) -> None:
    """Speeds over plain decoding by siblings, each at its best length."""
    rows = []
    for name, row in ROWS.items():
        for cost in costs:
            speeds, shown = [], []
            for siblings in SIBLINGS:
                speed, length = max((speed_of(rounds, n, siblings, row, cost), n) for n in range(1, LONGEST + 1))
                speeds.append(speed)
                shown.append(f"{speed:.3f} ({length})")
            rows.append([name, f"{cost:g}", *shown, f"{max(speeds) / speeds[0]:.3f}"])
    print_table(["a row costs", "a draft step", *[f"{n} siblings" for n in SIBLINGS], "best over none"], rows)


def speed_of(rounds: list[list[Step]], length: int, siblings: int, row: float, cost: float) -> float:
    """Tokens over time. Where a token was refused, the rest of the draft costs as much and brings nothing."""
    tokens = 0
    for steps in rounds:
        kept = next((n for n, one in enumerate(steps[:length]) if one.right != 0), min(length, len(steps)))
        tokens += kept + 1
        if kept < min(length, len(steps)) and steps[kept].right > 0 and siblings:
            tokens += (kept, steps[kept].right) in placed(steps, length, siblings)
    spent = len(rounds) * (1 + row * (length + siblings) + cost * length)
    return tokens / spent


def placed(steps: list[Step], length: int, siblings: int) -> set[tuple[int, int]]:
    """The likeliest siblings: places and choices. Steps after a refused one are unknown, and taken to be like it."""
    chances, path = list[tuple[float, int, int]](), 1.0
    for place in range(length):
        one = steps[min(place, len(steps) - 1)]
        chances += [(path * one.chances[choice], place, choice) for choice in range(1, CHOICES)]
        path *= one.chances[0]
    return {(place, choice) for _, place, choice in sorted(chances, reverse=True)[:siblings]}


if __name__ == "__main__":
    main()
