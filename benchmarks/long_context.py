"""Decoding after long prompts, plain and `auto`, and how well drafts agree that attend to a part of the context.

Prompts are the beginnings of real texts: modules of Python's standard library, and files that are named. Speeds are of
greedy answers, plain and `auto` in turn, which must be equal. With --agreement, nothing is generated: at positions of
the text after each context, every draft makes one step, and its likeliest token is compared with that of a full step.

    python benchmarks/long_context.py MODEL --contexts 1000 4000 8000
    python benchmarks/long_context.py MODEL --agreement --windows 256 512 1024 --views int4
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import add_json_option, log_softmax, print_machine, print_table, write_json

import specdec
from specdec.drafters.window import RECENT, SHARE
from specdec.engine.prompt_cache import PromptCache
from specdec.engine.speculation import AUTO_DRAFTERS
from specdec.model.effort import resolve_efforts
from specdec.model.loaded import Model
from specdec.runtimes.base import EXACT, Cache, Rows, Window, forward_one

MODULES = ("argparse.py", "tarfile.py", "doctest.py")
EFFORTS = {"nested": 0.7}


@dataclass
class Tally:
    """Steps of one draft at one context."""

    top1: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)


def read_text(path: Path) -> str:
    """A text, unpacked if it is compressed."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode(errors="replace")


def encoded(model: Model, paths: list[Path], length: int) -> dict[str, list[int]]:
    """The first `length` tokens of every text, by name; texts that are shorter are left out."""
    assert model.tokenizer is not None
    texts = {path.name: model.tokenizer.encode(read_text(path)[: 12 * length])[:length] for path in paths}
    if short := [name for name, tokens in texts.items() if len(tokens) < length]:
        print(f"shorter than {length} tokens, left out: {', '.join(short)}", file=sys.stderr)
    return {name: tokens for name, tokens in texts.items() if len(tokens) == length}


def step(model: Model, token: int, cache: Cache, view: str, window: Window | None) -> tuple[np.ndarray, float]:
    """Logits (V,) of one row, and seconds; the cache is as it was."""
    efforts, held = resolve_efforts(EFFORTS.get(view, 1.0), model.config), cache.length
    start_s = time.perf_counter()
    result = model.runtime.forward([Rows(cache, [token], efforts, window=window)], view=view)[0]
    seconds = time.perf_counter() - start_s
    cache.trim(held)
    return result.logits[0], seconds


def agreement(model: Model, texts: dict[str, list[int]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: agreement with a full step, by context, view and window."""
    windows = [None, *(Window(recent, arguments.sinks) for recent in arguments.windows)]
    drafts = [(view, window) for view in arguments.views for window in windows if (view, window) != (EXACT, None)]
    tallies = {(context, *draft): Tally() for context in arguments.contexts for draft in drafts}
    for name, tokens in texts.items():
        cache = model.runtime.new_cache(len(tokens))
        for context in arguments.contexts:
            forward_one(model.runtime, tokens[cache.length : context], cache, logits="none")
            for token in tokens[context : context + arguments.positions]:
                full, full_s = step(model, token, cache, EXACT, None)
                for draft in drafts:
                    logits, seconds = step(model, token, cache, *draft)
                    tally, p, q = tallies[context, *draft], log_softmax(full), log_softmax(logits)
                    tally.top1.append(int(logits.argmax()) == int(full.argmax()))
                    tally.kl.append(float((np.exp(p) * (p - q)).sum()))
                    tally.cost.append(seconds / full_s)
                forward_one(model.runtime, [token], cache, logits="none")
            print(f"  {name}, {context} tokens", file=sys.stderr)
    return [
        {
            "context": context,
            "view": view,
            "window": "all" if window is None else window.recent,
            "top-1": statistics.mean(tally.top1),
            "KL": statistics.mean(tally.kl),
            "full steps": statistics.median(tally.cost),
            "positions": len(tally.top1),
        }
        for (context, view, window), tally in tallies.items()
    ]


def ways(model: Model, arguments: argparse.Namespace, context: int) -> dict[str, dict[str, Any]]:
    """Ways of decoding to compare: their options by name."""
    found: dict[str, dict[str, Any]] = {"plain": {"speculate": False}, "auto": {}}
    if arguments.fixed and model.runtime.info.narrows:
        others = [one for one in AUTO_DRAFTERS if one != "effort"]
        for name, window in (("auto, windows", max(RECENT, context // SHARE)), ("auto, all of the context", "all")):
            found[name] = {"drafter": [f"effort:window={window}", *others]}
    return found


def decoding(model: Model, texts: dict[str, list[int]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: tokens a second by context, over all texts, and of `auto` the geometric mean of its gains."""
    options: dict[str, Any] = {"max_tokens": arguments.max_tokens, "ignore_eos": True}
    memories = {way: model.memory.fresh() for way in ways(model, arguments, 0)}  # none knows what another has learnt
    found = []
    for context in arguments.contexts:
        speeds: dict[str, list[float]] = {way: [] for way in memories}
        for name, tokens in texts.items():
            model.prompt_cache = PromptCache()
            specdec.generate(model, tokens[:context], **options)  # reads the prompt, and lets costs be learnt
            for number in range(arguments.rounds):
                answers = {}
                compared = list(ways(model, arguments, context).items())
                for way, more in compared if number % 2 == 0 else compared[::-1]:  # machines change meanwhile
                    model.memory = memories[way]
                    answers[way] = specdec.generate(model, tokens[:context], **options, **more)
                    speeds[way].append(answers[way].stats.tok_per_s)
                if len({tuple(answer.tokens) for answer in answers.values()}) > 1:
                    sys.exit(f"{name}, {context} tokens: answers differ")
            print(f"  {name}, {context} tokens", file=sys.stderr)
        row: dict[str, Any] = {"context": context, "plain tok/s": statistics.harmonic_mean(speeds["plain"])}
        for way in list(speeds)[1:]:
            gains = [fast / plain for fast, plain in zip(speeds[way], speeds["plain"], strict=True)]
            row |= {f"{way} / plain": statistics.geometric_mean(gains)}
        found.append(row)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument(
        "--texts", type=Path, nargs="+", metavar="FILE", help="default: modules of the standard library"
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[1000, 4000, 8000], metavar="TOKENS")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="answers of each way (default %(default)s)")
    parser.add_argument(
        "--fixed", action="store_true", help="also time drafts that always have a window, and that never have one"
    )
    parser.add_argument("--agreement", action="store_true", help="compare drafts that attend to a part of the context")
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 512, 1024], metavar="TOKENS")
    parser.add_argument("--sinks", type=int, default=4, metavar="TOKENS", help="first positions (default %(default)s)")
    parser.add_argument("--views", nargs="+", default=[EXACT, "int4"], metavar="VIEW")
    parser.add_argument("--positions", type=int, default=48, help="of each text and context (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    model = specdec.load(arguments.model, runtime="native", threads=arguments.threads)
    library = Path(sysconfig.get_path("stdlib"))
    paths = arguments.texts or [library / name for name in MODULES]
    texts = encoded(model, paths, max(arguments.contexts) + (arguments.positions if arguments.agreement else 0))
    if not texts:
        parser.error("no text is long enough: name longer ones with --texts, or ask for shorter contexts")
    print_machine()
    print(f"{arguments.model}, {model.runtime.info.threads} threads, {', '.join(texts)}")
    for view in arguments.views if arguments.agreement else ():
        model.runtime.prepare(view)
    results = agreement(model, texts, arguments) if arguments.agreement else decoding(model, texts, arguments)
    print_table(list(results[0]), [list(row.values()) for row in results])
    write_json(arguments.json, results, benchmark="long_context")


if __name__ == "__main__":
    main()
