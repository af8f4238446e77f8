"""Tokens a second from prompt to answer: plain decoding, speculation at several settings, and llama.cpp beside them.

Every prompt is answered by every contender in turn, greedily, so that a machine that slows down slows all of them. The
tokens of each speculative answer are compared with plain decoding's before its time counts. Rates are emitted tokens
over decoding time, prefill left out, for all contenders.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from common import add_json_option, print_machine, print_table, write_json

import specdec
from specdec.bench.prompts import BUILT_IN, load_prompts
from specdec.model import Model


@dataclass
class Tally:
    """Tokens, seconds, rounds and drafts of one contender on one task, and the rate of every answer."""

    tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    overhead_s: float = 0.0
    rates: list[float] = field(default_factory=list)

    def add(self, tokens: int, seconds: float, drafted: int = 0, accepted: int = 0) -> None:
        """Count one answer."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
        self.rates.append(tokens / seconds)


def prompts(per_task: int) -> dict[str, list[str]]:
    """Chat prompts by task: the six tasks of Spec-Bench and HumanEval, evenly spread over each set."""
    by_task: dict[str, list[str]] = defaultdict(list)
    for prompt in load_prompts(BUILT_IN, per_task=per_task):
        by_task[prompt.task].append(str(prompt.content))
    return by_task


def fixed_setting(setting: str) -> dict[str, object]:
    """Options of `specdec.generate` for `view:effort:length`, drafted by the model itself; "auto" for the defaults."""
    if setting == "auto":
        return {}
    view, effort, length = setting.split(":")
    chosen = {"draft_view": view, "draft_effort": float(effort), "draft_len": int(length)}
    return {"policy": "fixed", "drafter": "effort", **chosen}


def specdec_contender(model: Model, options: dict[str, object], max_tokens: int) -> Callable[[str, Tally], list[int]]:
    """Answer with specdec, under options of `specdec.generate`; returns the answer's tokens.

    Each contender has a memory of its own: what one has learnt from a prompt must not help the next one with it.
    """
    memory = model.shared = {}
    # One short answer first: draft views are built, pages touched, threads awake.
    specdec.generate(model, "Hello", max_tokens=8, **options)

    def answer(prompt: str, tally: Tally) -> list[int]:
        model.shared = memory
        result = specdec.generate(model, prompt, max_tokens=max_tokens, **options)
        stats = result.stats
        tally.add(stats.emitted, stats.decode_s, stats.drafted, stats.accepted)
        tally.overhead_s += stats.overhead_s
        tally.rounds += stats.rounds
        return result.tokens

    return answer


def llama_contender(model: Model, command: list[str], max_tokens: int) -> Callable[[str, Tally], None]:
    """Answer with a llama.cpp program, whose own timing of the decoding is taken."""

    def answer(prompt: str, tally: Tally) -> None:
        assert model.tokenizer is not None
        text = model.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        options = ["-p", text, "-n", str(max_tokens), "--temp", "0", "-t", "2", "-c", "4096"]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        printed = done.stdout + done.stderr
        timed = re.search(r"\beval time =\s*([\d.]+) ms /\s*(\d+) runs", printed)
        decoded = re.search(r"decoded\s+(\d+) tokens in\s+([\d.]+) seconds", printed)
        if "speculative" in command[0] or "lookup" in command[0]:
            found = decoded and (int(decoded[1]), float(decoded[2]))
        else:
            found = timed and (int(timed[2]), float(timed[1]) / 1000)
        if not found:
            raise SystemExit(f"{command[0]} printed no timing; its last words: {printed[-300:]}")
        tally.add(*found)

    return answer


def measure(args: argparse.Namespace, model: Model) -> dict[str, dict[str, Tally]]:
    """Tallies by task and contender."""
    ours = {"plain": specdec_contender(model, {"speculate": False}, args.max_tokens)}
    ours |= {one: specdec_contender(model, fixed_setting(one), args.max_tokens) for one in args.settings}
    theirs = {name: llama_contender(model, command.split(), args.max_tokens) for name, command in args.peer}
    tallies: dict[str, dict[str, Tally]] = {}
    for task, texts in prompts(args.per_task).items():
        row = tallies.setdefault(task, defaultdict(Tally))
        for index, prompt in enumerate(texts):
            answers = {name: answer(prompt, row[name]) for name, answer in ours.items()}
            for name, tokens in answers.items():
                if tokens != answers["plain"]:
                    raise SystemExit(f"{name} differs from plain decoding on {task} prompt {index}")
            for name, run_peer in theirs.items():
                run_peer(prompt, row[name])
            print(f"  {task} {index + 1}/{len(texts)}", file=sys.stderr)
    return tallies


def report(tallies: dict[str, dict[str, Tally]]) -> list[dict[str, object]]:
    """Rows of the table: by task, and overall as the mean over tasks of the ratio to plain decoding."""
    rows: list[dict[str, object]] = []
    names = list(next(iter(tallies.values())))
    ratios: dict[str, list[float]] = defaultdict(list)
    for task, row in tallies.items():
        plain = row["plain"].tokens / row["plain"].seconds
        for name in names:
            tally = row[name]
            rate = tally.tokens / tally.seconds
            ratios[name].append(rate / plain)
            rows.append(
                {
                    "task": task,
                    "contender": name,
                    "tok_per_s": rate,
                    "lowest": min(tally.rates),
                    "median": median(tally.rates),
                    "highest": max(tally.rates),
                    "ratio_to_plain": rate / plain,
                    "accepted_share": tally.accepted / tally.drafted if tally.drafted else 0.0,
                }
            )
    for name in names:
        mean = sum(ratios[name]) / len(ratios[name])
        rows.append({"task": "mean over tasks", "contender": name, "ratio_to_plain": mean})
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="catalogue name, store, folder or .gguf")
    parser.add_argument(
        "--settings", nargs="+", default=["auto", "int4:1.0:6", "int4:0.5:4"], metavar="VIEW:EFFORT:LENGTH"
    )
    parser.add_argument("--per-task", type=int, default=2, help="prompts per task")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--runtime", default="native")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--peer",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "COMMAND"),
        help="a llama.cpp command to run beside: 'llama.cpp F16' 'llama-completion -no-cnv -m model-f16.gguf'",
    )
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    model = specdec.load(args.model, runtime=args.runtime, threads=args.threads)
    rows = report(measure(args, model))
    header = list(rows[0])
    print_table(header, [[row.get(key, "") for key in header] for row in rows])
    settings = {"model": Path(args.model).name, "max_tokens": args.max_tokens, "per_task": args.per_task}
    write_json(args.json, {"settings": settings, "rows": rows}, benchmark="end_to_end")


if __name__ == "__main__":
    main()
