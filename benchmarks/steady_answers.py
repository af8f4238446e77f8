"""First answers of the default policy over plain decoding, where every pass costs what it is said to cost.

python benchmarks/steady_answers.py qwen2.5-coder-0.5b --plain-ms 13.5 --rows 3:1.15 5:1.4 9:2.2 \
    --steps 0.2:0.34 0.5:0.46 1:0.56 --whole-steps 0.2:0.41 0.5:0.56 1:0.7 \
    --drafters "effort;ngram;recycle" "effort:head=all;ngram;recycle"

Real answers, drafts and decisions on the native runtime; but the clock, for policies and results alike, goes on by the
stated cost of each pass, give or take 3 %, and by the processor time of what is between passes. So machines whose speed
comes and goes can compare drafters and policies. `never_slower.py` measures with a real clock.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from common import print_machine, print_table

import specdec
from specdec.engine import speculation
from specdec.engine.memory import MachineCosts, Memory
from specdec.lab.bench.prompts import TaskPrompt, load_prompts
from specdec.runtimes.base import EXACT, Pass, Rows
from specdec.runtimes.native.runtime import NativeRuntime

PLAIN, JITTER = "plain", 0.03


class Clock:
    """A clock that passes move on by what they are said to cost.

    Args:
        plain_s: seconds of a plain step.
        rows: costs of exact passes, in plain steps.
        steps: costs of draft steps with a draft head, by effort.
        whole_steps: of those that score all tokens.
    """

    def __init__(
        self,
        plain_s: float,
        rows: Mapping[float, float],
        steps: Mapping[float, float],
        whole_steps: Mapping[float, float],
    ) -> None:
        self._plain_s, self._rows, self._steps, self._whole = plain_s, {1.0: 1.0, **rows}, steps, whole_steps
        self._passed_s = self._skipped_s = 0.0
        self._random = random.Random(0)
        self._forward = NativeRuntime.forward

    def now(self) -> float:
        """Seconds."""
        return time.thread_time() - self._skipped_s + self._passed_s

    def install(self) -> None:
        """Take the place of the real clock."""
        clock = self

        def forward(runtime: Any, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
            start_s = time.thread_time()
            found = clock._forward(runtime, batch, view=view, states=states)
            clock._skipped_s += time.thread_time() - start_s
            clock._passed_s += clock._cost(batch, view)
            return found

        NativeRuntime.forward = forward  # type: ignore[method-assign]
        time.perf_counter = self.now  # type: ignore[assignment]

    def _cost(self, batch: Sequence[Rows], view: str) -> float:
        if view == EXACT:
            cost = _between(self._rows, sum(len(rows.tokens) for rows in batch))
        else:
            efforts = batch[0].efforts.values
            cost = _between(self._whole if batch[0].head is None else self._steps, sum(efforts) / len(efforts))
        return self._plain_s * cost * math.exp(self._random.gauss(0, JITTER))


def main() -> None:
    """Answer, and print the speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--plain-ms", type=float, required=True, metavar="MS", help="a plain step")
    costs = {"nargs": "+", "required": True, "type": _point, "metavar": "AT:COST"}
    parser.add_argument("--rows", help="exact passes by rows, in plain steps", **costs)
    parser.add_argument("--steps", help="draft steps with a draft head by effort", **costs)
    parser.add_argument("--whole-steps", help="draft steps that score all tokens", **costs)
    parser.add_argument("--drafters", nargs="+", default=[";".join(speculation.AUTO_DRAFTERS)], metavar="DRAFTERS")
    parser.add_argument("--prompts", type=int, default=1, metavar="N", help="a kind (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96, metavar="N", help="of an answer (default %(default)s)")
    args = parser.parse_args()
    model = specdec.load(args.model, runtime="native")
    Clock(args.plain_ms / 1e3, dict(args.rows), dict(args.steps), dict(args.whole_steps)).install()
    kinds: dict[str, list[TaskPrompt]] = {}
    for prompt in load_prompts(["spec-bench", "humaneval"]):
        kinds.setdefault(prompt.task, []).append(prompt)
    _answer(model, kinds["qa"][0], args.drafters[0], args.max_tokens)  # views are built
    rows = []
    for kind, prompts in kinds.items():
        chosen = prompts[:: max(1, len(prompts) // args.prompts)][: args.prompts]
        rows.append([kind, *_speeds(model, chosen, args.drafters, args.max_tokens)])
    print_machine()
    means = [statistics.fmean(row[at] for row in rows) for at in range(1, len(args.drafters) + 1)]
    table = [[row[0], *[f"{one:.2f}" for one in row[1:]]] for row in [*rows, ["mean", *means]]]
    print_table(["kind", *args.drafters], table)


def _speeds(model: specdec.Model, prompts: list[TaskPrompt], drafters: list[str], most: int) -> list[float]:
    """The mean speed over plain decoding with each set of drafters."""
    found: list[list[float]] = [[] for _ in drafters]
    for prompt in prompts:
        plain = _answer(model, prompt, PLAIN, most)
        for speeds, names in zip(found, drafters, strict=True):
            result = _answer(model, prompt, names, most)
            if result.tokens != plain.tokens:
                sys.exit(f"CHECK FAILED: {prompt.task} {prompt.name}: the tokens are not plain decoding's")
            speeds.append(plain.stats.decode_s / result.stats.decode_s)
    return [statistics.fmean(speeds) for speeds in found]


def _answer(model: specdec.Model, prompt: TaskPrompt, names: str, most: int) -> Any:
    """An answer by a policy that knows nothing yet."""
    model.memory = Memory(costs=MachineCosts(is_kept=False), drafters=model.memory.drafters)
    if names != PLAIN:
        speculation.AUTO_DRAFTERS = tuple(names.split(";"))  # type: ignore[assignment]
    return specdec.generate(
        model, prompt.content, max_tokens=most, temperature=0.0, chat=True, speculate=names != PLAIN
    )


def _point(text: str) -> tuple[float, float]:
    at, _, cost = text.partition(":")
    return float(at), float(cost)


def _between(points: Mapping[float, float], at: float) -> float:
    """The value at `at` on straight lines through `points`; beyond the last, along the last line."""
    known = sorted(points)
    if len(known) == 1 or at <= known[0]:
        return points[known[0]]
    above = min(bisect_left(known, at), len(known) - 1)
    low, high = known[above - 1], known[above]
    return points[low] + (points[high] - points[low]) * (at - low) / (high - low)


if __name__ == "__main__":
    main()
