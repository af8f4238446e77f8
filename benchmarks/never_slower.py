"""Is the default policy ever slower than plain decoding? First answers to seven kinds of prompts.

python benchmarks/never_slower.py MODEL --resume answers.jsonl --threads 2 [--loaded] [--kinds qa rag] [--budget-s 600]

Every prompt is answered plainly and by the default policy, in turn, `--repeats` times. Each answer of the policy is the
first of its kind: the model's memory is emptied before it and the costs of passes are measured anew, which no cache
folder remembers. With `--loaded` a busy loop on every processor core runs while they are measured, and only then.
A speed is that of all rounds after the prompt was read. A prompt's ratio is the median over its repeats of the policy's
speed over plain decoding's in the answer next to it; a kind's is the median over prompts, with a bootstrap interval of
95 %. Answers must be equal to the token: exit code 1 if one is not.

The run continues from the file of `--resume`, which holds a line of JSON an answer, and ends early after `--budget-s`.
Several runs, each with its own `--kinds` and file, are put together by `--merge FILE...`, which measures nothing.

`--beside DRAFTERS...` answers by the same policy over other drafters as well, each time next to the default: what
"effort:head=all;ngram;recycle" shows is what the draft head brings, "effort;ngram" what recycled tokens do.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json

import specdec
from specdec.engine import speculation
from specdec.engine.memory import MachineCosts, Memory
from specdec.engine.prompt_cache import PromptCache
from specdec.errors import InvalidArgumentError
from specdec.lab.bench.prompts import TaskPrompt, fingerprint, load_prompts
from specdec.lab.journal import Journal, as_is

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from specdec.engine.result import Result
    from specdec.model.loaded import Model

KIND = "never_slower"
AIM, BOUND = 0.97, 0.95  # no kind's median below the one, none significantly below the other
RESAMPLES, SEED = 4000, 0
_SETTLE_S = 0.05  # for a load to start, and to end


def main() -> None:
    """Measure what is missing, and print what is there."""
    args = _arguments()
    try:
        results = _merged(args.merge) if args.merge else _measured(args)
    except InvalidArgumentError as error:
        sys.exit(f"never_slower: {error}")
    rows = summarise(results)
    print_machine()
    for drafters in ["", *sorted({name for one in results.values() for name in one.get("beside", {})})]:
        own = rows if not drafters else summarise(results, drafters)
        header = list(own[0]) if own else []
        print(f"drafters: {drafters or 'auto'}")
        print_table(header, [[_shown(row[key]) for key in header] for row in own])
    write_json(args.json, {"rows": rows, "answers": list(results.values())}, benchmark=KIND)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--sets", nargs="+", default=["spec-bench", "humaneval"], help="prompt sets, or files of own")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="only these kinds of prompts")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="prompts a kind (default %(default)s)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="take each N prompts later than that")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="pairs a prompt (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="of an answer (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of the draw (default 0, greedy)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with")
    parser.add_argument("--raw", action="store_true", help="take prompts as they are, without the chat template")
    parser.add_argument("--beside", nargs="+", default=[], metavar="DRAFTERS", help="other drafters to measure, too")
    parser.add_argument("--loaded", action="store_true", help="measure costs while all cores are busy")
    parser.add_argument("--budget-s", type=float, default=math.inf, metavar="S", help="begin no pair after that time")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep the answers here, and continue from them")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="sum up files of --resume instead")
    add_json_option(parser)
    args = parser.parse_args()
    if (args.model is None) == (args.merge is None):
        parser.error("give a MODEL, or --merge and files of earlier runs")
    if min(args.prompts, args.repeats, args.max_tokens) < 1 or args.skip < 0:
        parser.error("--prompts, --repeats and --max-tokens must be at least 1, --skip at least 0")
    if args.merge is None and args.resume is None:
        parser.error("--resume FILE must say where to keep the answers")
    return args


@dataclass(frozen=True, slots=True)
class Load:
    """Busy loops, one on every core that this process may use, paused unless `on`."""

    wanted: Event

    @contextmanager
    def on(self) -> Iterator[None]:
        """Keep all cores busy meanwhile."""
        self.wanted.set()
        time.sleep(_SETTLE_S)
        try:
            yield
        finally:
            self.wanted.clear()
            time.sleep(_SETTLE_S)


@contextmanager
def busy_loops() -> Iterator[Load]:
    """Processes that keep all cores busy when asked to, ended afterwards."""
    context = multiprocessing.get_context("spawn")
    wanted = context.Event()
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = [context.Process(target=_spin, args=(wanted,), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield Load(wanted)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _spin(wanted: Event) -> None:
    while True:
        wanted.wait()
        for _ in range(20_000):
            pass


def _chosen(args: argparse.Namespace) -> list[TaskPrompt]:
    """The prompts, kinds taking turns, evenly spread over what there is of each."""
    by_kind: dict[str, list[TaskPrompt]] = {}
    for prompt in load_prompts(args.sets, tasks=args.kinds):
        by_kind.setdefault(prompt.task, []).append(prompt)
    chosen = []
    for kind, prompts in by_kind.items():
        stride = max(1, len(prompts) // args.prompts)
        spread = prompts[args.skip :: stride][: args.prompts]
        if len(spread) < args.prompts:
            print(f"only {len(spread)} prompts of the kind {kind}", file=sys.stderr)
        chosen.append(spread)
    most = max(map(len, chosen))
    return [prompts[index] for index in range(most) for prompts in chosen if index < len(prompts)]


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """Answer in pairs until all are there or the time is over; returns what the journal holds."""
    end_s = time.monotonic() + args.budget_s
    prompts = _chosen(args)
    model = specdec.load(args.model, threads=args.threads)
    settings = {
        "model": Path(args.model).name,
        "threads": model.runtime.info.threads,
        "runtime": model.runtime.info.name,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "raw": args.raw,
        "loaded": args.loaded,
        "prompts": fingerprint(prompts),
    }
    journal = Journal(args.resume, KIND, settings, decode=as_is, extra={"kinds": args.kinds}, strict=True)
    model.prompt_cache = PromptCache()
    try:
        with busy_loops() as load:
            pair = _Pairs(model, load, args)
            for repeat in range(args.repeats):
                for prompt in prompts:
                    name = f"{prompt.task}/{prompt.name}/{repeat}"
                    if name in journal.results:
                        continue
                    if time.monotonic() > end_s:
                        print(f"time is over after {len(journal.results)} pairs; the same command goes on")
                        return journal.results
                    journal.add(name, pair.measure(prompt, repeat))
    finally:
        journal.close()
    return journal.results


class _Pairs:
    """Answers a prompt plainly and by the default policy, one after the other."""

    def __init__(self, model: Model, load: Load, args: argparse.Namespace) -> None:
        self._model, self._load, self._args = model, load, args
        self._auto = speculation.AUTO_DRAFTERS
        self._forget()
        self._answer([1], way="auto", max_tokens=8)  # views are built, pages touched, threads awake

    def measure(self, prompt: TaskPrompt, repeat: int) -> dict[str, Any]:
        """A pair; which of the two comes first changes from repeat to repeat."""
        self._forget()
        found: dict[str, Any] = {"kind": prompt.task, "prompt": prompt.name, "repeat": repeat}
        tokens = {}
        ways = ["plain", "auto", *self._args.beside]
        for way in ways if repeat % 2 == 0 else reversed(ways):
            result = self._answer(prompt.content, way=way, max_tokens=self._args.max_tokens)
            tokens[way] = result.tokens
            if way in ("plain", "auto"):
                found[way] = _short(result)
            else:
                found.setdefault("beside", {})[way] = _short(result)
            if way == "auto":
                table = self._model.memory.costs.table
            if way != "plain":
                self._forget()
        if any(one != tokens["plain"] for one in tokens.values()):
            sys.exit(f"CHECK FAILED: {prompt.task} {prompt.name}: the policy's tokens are not plain decoding's")
        steps = [[*key, seconds] for key, seconds in table.draft_s.items()]
        return found | {"verify_s": dict(table.verify_s), "draft_s": steps}

    def _forget(self) -> None:
        """Measure costs again, and forget what policies have learnt."""
        self._model.memory = Memory(costs=MachineCosts(is_kept=False), drafters=self._model.memory.drafters)

    def _answer(self, content: Any, *, way: str, max_tokens: int) -> Result:
        is_plain = way == "plain"
        speculation.AUTO_DRAFTERS = self._auto if way in ("plain", "auto") else tuple(way.split(";"))
        options = {"max_tokens": max_tokens, "temperature": self._args.temperature, "seed": SEED}
        if not (isinstance(content, list) and isinstance(content[0], int)):
            options["chat"] = not self._args.raw
        if not is_plain and self._args.loaded:
            with self._load.on():
                generation = specdec.stream(self._model, content, **options)
        else:
            generation = specdec.stream(self._model, content, speculate=not is_plain, **options)
        with generation:
            for _ in generation:
                pass
            return generation.result()


def _short(result: Result) -> dict[str, Any]:
    stats = result.stats.to_dict()
    names = ("decode_s", "draft_s", "verify_s", "overhead_s", "rounds", "plain_rounds", "drafted", "accepted")
    return {"tokens": stats["emitted"], **{name: stats[name] for name in names}, "policy": stats["policy"]}


def _merged(files: Sequence[Path]) -> dict[str, Any]:
    """The pairs of several files of the same model and settings; runs may still be writing them."""
    results: dict[str, Any] = {}
    wanted: dict[str, Any] | None = None
    for file in files:
        try:
            first, *lines = [
                json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(True) if "\n" in line
            ]
            settings = {key: value for key, value in first["of"].items() if key != "prompts"}
            found = {line["name"]: line["value"] for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(f"{file} is not a file of --resume: {error}") from None
        if wanted not in (None, settings):
            raise InvalidArgumentError(f"{file} was measured with other settings: {settings}, not {wanted}")
        wanted = settings
        results |= found
    return results


def summarise(results: dict[str, Any], drafters: str = "") -> list[dict[str, Any]]:
    """A row for each kind, and one for the mean of all.

    Args:
        results: pairs, as `_Pairs.measure` returns them.
        drafters: of `--beside` whose answers to sum up; empty for the default's.

    Returns:
        Rows with the kind, the number of prompts and pairs, the median ratio over prompts and its interval, the ratio
        of the summed times, the quartiles and the least of the prompts' ratios, how many are below 1 and the sign test
        of that, and what is wrong.
    """
    kinds: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for one in results.values():
        auto = one.get("beside", {}).get(drafters) if drafters else one["auto"]
        if auto is not None:
            kinds.setdefault(one["kind"], {}).setdefault(one["prompt"], []).append(one | {"auto": auto})
    rows = [_row(kind, prompts) for kind, prompts in kinds.items()]
    if rows:
        mean = {
            key: statistics.fmean(row[key] for row in rows)
            for key in ("median", "total", "lower quartile", "upper quartile")
        }
        counts = {key: sum(row[key] for row in rows) for key in ("prompts", "pairs", "slower")}
        least = min(row["least"] for row in rows)
        flag = " ".join(f"{row['kind']}: {row['flag']}" for row in rows if row["flag"])
        rows.append(dict.fromkeys(rows[0]) | mean | counts | {"kind": "mean", "least": least, "flag": flag})
    return rows


def _row(kind: str, prompts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    pairs = [[one["plain"]["decode_s"] / one["auto"]["decode_s"] for one in found] for found in prompts.values()]
    ratios = [statistics.median(one) for one in pairs]
    sums = [sum(statistics.median(one[way]["decode_s"] for one in found) for found in prompts.values()) for way in
            ("plain", "auto")]  # fmt: skip
    low, high = _interval(pairs)
    lower, median, upper = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    slower = sum(ratio < 1 for ratio in ratios)
    flag = "significantly below 0.95" if high < BOUND else "below 0.97" if median < AIM else ""
    return {
        "kind": kind,
        "prompts": len(ratios),
        "pairs": sum(map(len, pairs)),
        "median": median,
        "low": low,
        "high": high,
        "total": sums[0] / sums[1],
        "lower quartile": lower,
        "upper quartile": upper,
        "least": min(ratios),
        "slower": slower,
        "sign test": _sign_test(slower, len(ratios)),
        "flag": flag,
    }


def _interval(pairs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the median over prompts of the medians over repeats; prompts are drawn
    anew, and the repeats of each."""
    generator = np.random.default_rng(SEED)
    most = max(map(len, pairs))
    drawn = np.empty((RESAMPLES, len(pairs), most))
    prompts = generator.integers(0, len(pairs), (RESAMPLES, len(pairs)))
    padded = [[one[index % len(one)] for index in range(most)] for one in pairs]
    table, repeats = np.array(padded), generator.integers(0, most, drawn.shape)
    drawn = table[prompts[:, :, None], repeats]
    low, high = np.quantile(np.median(np.median(drawn, axis=2), axis=1), (0.025, 0.975))
    return float(low), float(high)


def _sign_test(slower: int, count: int) -> float:
    """Chance that this number or more of `count` are slower if both are equally likely (one-sided)."""
    return sum(math.comb(count, k) for k in range(slower, count + 1)) / 2**count


def _shown(value: Any) -> Any:
    return "" if value is None else value


if __name__ == "__main__":
    main()
