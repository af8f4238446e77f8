"""Passes, plain decoding and `auto` of the native runtime by number of threads.

All numbers of threads take turns, so that whatever slows the machine down slows all of them. Logits must be equal bits
with any number of threads before anything is timed. With --llama, llama-bench reads the same file in turn.

    python benchmarks/cpu_threads.py smollm2-135m-f16.store --threads 2 4 8 16 --auto
    python benchmarks/cpu_threads.py MODEL.gguf --contexts 200 1000 8000 --llama llama-bench --gguf MODEL.gguf
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import numpy as np
from common import add_json_option, print_machine, print_table, write_json
from cpu_step import llama_speed

import specdec
from specdec.lab.bench.prompts import load_prompts
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.timing import Timed, timed

FULL = EffortSchedule(1.0)
EFFORTS = {"int4": (1.0, 0.7), "nested": (0.7,), "own": (0.7,)}


def cases(runtime: Any, rows: list[int], views: list[str]) -> list[Timed]:
    """What is timed at every number of threads; the first is a single row of the exact view."""
    found = [Timed(count) for count in rows]
    for view in views:
        if view in runtime.views():
            runtime.prepare(view)
            found += [Timed(1, effort, view) for effort in EFFORTS.get(view, (0.7,))]
    return found


def check(models: list[Any], tokens: list[int], views: list[str]) -> None:
    """Refuse to time threads that change bits."""
    for view in ["exact", *views]:
        seen = []
        for model in models:
            if view in ("exact", *model.runtime.views()):
                cache = model.runtime.new_cache(16)
                seen.append(forward_one(model.runtime, tokens[:9], cache, effort=FULL, view=view).logits)
        if any(not np.array_equal(seen[0], other) for other in seen[1:]):
            sys.exit(f"view {view}: threads change the logits: nothing was timed")


def burst(runtime: Any, cache: Any, tokens: list[int], kind: Timed, passes: int) -> float:
    """Median seconds of a pass that follows others of its kind: threads are awake, and caches hold what they can."""
    seconds = [
        timed(runtime, tokens[: kind.rows], cache, effort=kind.effort, view=kind.view)[1] for _ in range(passes + 1)
    ]
    return statistics.median(seconds[1:])


def step_times(models: list[Any], tokens: list[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Median milliseconds of every pass, by context and threads."""
    found: list[dict[str, Any]] = []
    for context in arguments.contexts:
        caches = [model.runtime.new_cache(context + 64) for model in models]
        kinds: list[Timed] = []
        for model, cache in zip(models, caches, strict=True):
            text = (tokens * (context // len(tokens) + 1))[:context]
            forward_one(model.runtime, text, cache, effort=FULL, logits="last")
            kinds = cases(model.runtime, arguments.rows, arguments.views)
        times: dict[tuple[int, int], list[float]] = {}
        for _ in range(arguments.repeat):
            for place, kind in enumerate(kinds):
                for number, (model, cache) in enumerate(zip(models, caches, strict=True)):
                    seconds = burst(model.runtime, cache, tokens, kind, arguments.burst)
                    times.setdefault((place, number), []).append(seconds)
        for place, kind in enumerate(kinds):
            for number, model in enumerate(models):
                seconds = times[place, number]
                found.append(
                    {
                        "context": context,
                        "view": kind.view,
                        "effort": kind.effort,
                        "rows": kind.rows,
                        "threads": model.runtime.threads,
                        "ms": statistics.median(seconds) * 1e3,
                        "speed-up": ratio(times[place, 0], seconds),
                        "single rows": ratio(seconds, times[0, number]),
                    }
                )
    return found


def ratio(above: list[float], below: list[float]) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def auto_gain(models: list[Any], max_tokens: int) -> list[dict[str, Any]]:
    """Speed of `auto` over plain decoding: geometric mean over one prompt of each kind, and the kinds."""
    prompts = load_prompts(("spec-bench", "humaneval"), per_task=1)
    found = []
    for model in models:
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "seed": 0}
        specdec.generate(model, prompts[0].content, **options)
        ratios, plain_speed, auto_speed, shares = {}, [], [], []
        for prompt in prompts:
            plain = specdec.generate(model, prompt.content, speculate=False, **options)
            auto = specdec.generate(model, prompt.content, **options)
            if auto.tokens != plain.tokens:
                sys.exit(f"{prompt.task}: auto and plain answers differ")
            ratios[prompt.task] = auto.stats.tok_per_s / plain.stats.tok_per_s
            plain_speed.append(plain.stats.tok_per_s)
            auto_speed.append(auto.stats.tok_per_s)
            shares.append(auto.stats.overhead_s / auto.stats.decode_s)
        row = {
            "threads": model.runtime.threads,
            "plain tok/s": statistics.geometric_mean(plain_speed),
            "auto tok/s": statistics.geometric_mean(auto_speed),
            "auto / plain": statistics.geometric_mean(ratios.values()),
            "between passes": statistics.mean(shares),
        }
        found.append(row | ratios)
    return found


def llama_beside(arguments: argparse.Namespace, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """llama.cpp's speed by number of threads, and what `answers`, of `auto_gain`, are in units of it."""
    found = []
    for number, threads in enumerate(arguments.threads):
        prompt, plain = llama_speed(arguments.llama, arguments.gguf, threads)
        row = {"threads": threads, "llama.cpp prompt tok/s": prompt, "llama.cpp plain tok/s": plain}
        if answers:
            row |= {kind: answers[number][f"{kind} tok/s"] / plain for kind in ("plain", "auto")}
        found.append(row)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 4, 8, 16], metavar="N")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5, 9, 16], metavar="N")
    parser.add_argument("--views", nargs="*", default=["int4", "nested"], metavar="VIEW")
    parser.add_argument("--contexts", type=int, nargs="+", default=[200], metavar="TOKENS")
    parser.add_argument("--repeat", type=int, default=20, help="rounds (default %(default)s)")
    parser.add_argument("--burst", type=int, default=4, help="passes of a kind in a row (default %(default)s)")
    parser.add_argument("--auto", action="store_true", help="also time `auto` answers to seven kinds of prompt")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer (default %(default)s)")
    parser.add_argument("--llama", metavar="PROGRAM", help="llama-bench of llama.cpp, to compare with")
    parser.add_argument("--gguf", metavar="FILE", help="the same weights, for --llama")
    add_json_option(parser)
    arguments = parser.parse_args()
    if bool(arguments.llama) != bool(arguments.gguf):
        parser.error("--llama and --gguf go together")
    models = [specdec.load(arguments.model, runtime="native", threads=threads) for threads in arguments.threads]
    vocab = models[0].runtime.config.vocab_size
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, vocab, 512)]
    check(models, tokens, [view for view in arguments.views if view in models[0].runtime.views()])
    print_machine()
    print(f"{arguments.model}, {models[0].runtime.isa}, {arguments.repeat} rounds in turn")
    results: dict[str, Any] = {"steps": step_times(models, tokens, arguments)}
    print_table(list(results["steps"][0]), [list(row.values()) for row in results["steps"]])
    if arguments.auto:
        results["auto"] = auto_gain(models, arguments.max_tokens)
        print_table(list(results["auto"][0]), [list(row.values()) for row in results["auto"]])
    if arguments.llama:
        results["llama"] = llama_beside(arguments, results.get("auto", []))
        print_table(list(results["llama"][0]), [list(row.values()) for row in results["llama"]])
    write_json(arguments.json, results, benchmark="cpu_threads")


if __name__ == "__main__":
    main()
