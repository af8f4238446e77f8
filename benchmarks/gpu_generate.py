"""Real models on the GPU: tokens a second plain and speculative, acceptance, and whether the tokens are the same.

python benchmarks/gpu_generate.py smollm2-135m qwen2.5-coder-0.5b --json results/gpu_generate-DEVICE.json
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from common import PROMPTS, add_json_option, print_table, write_json
from gpu_common import device

import specdec


def cases(model: Any) -> dict[str, dict[str, Any]]:
    """What to ask for, by label; the first is what the others are compared with."""
    view = "nested" if model.store.quantised else "int4"
    drafts = {"policy": "fixed", "drafter": "effort", "draft_view": view, "draft_effort": 1.0}
    return {
        "plain": {"speculate": False},
        f"fixed 4, {view} at 1.0": drafts,
        "fixed 8, lookup": {"policy": "fixed", "drafter": "ngram", "draft_len": 8},
        "auto": {},
    }


def measure(model: Any, options: dict[str, Any], max_tokens: int) -> tuple[list[list[int]], float, float, float]:
    """Tokens of every prompt, and over all: tokens a second, accepted of drafted, tokens a round."""
    tokens, seconds, drafted, accepted, rounds = [], 0.0, 0, 0, 0
    for prompt in PROMPTS:
        result = specdec.generate(model, prompt, max_tokens=max_tokens, **options)
        tokens.append(result.tokens)
        seconds += result.stats.draft_s + result.stats.verify_s
        drafted, accepted = drafted + result.stats.drafted, accepted + result.stats.accepted
        rounds += result.stats.rounds
    emitted = sum(map(len, tokens))
    return tokens, emitted / seconds, accepted / drafted if drafted else 0.0, emitted / rounds


def main() -> None:
    """Generate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="catalogue names, stores, GGUF files or Hugging Face folders")
    parser.add_argument("--max-tokens", type=int, default=96, help="of each answer (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    for name in arguments.models:
        model = specdec.load(name, runtime="mlx")
        wanted: list[list[int]] = []
        base = 0.0
        for label, options in cases(model).items():
            measure(model, options, arguments.max_tokens)  # kernels are compiled when they are first needed
            tokens, speed, acceptance, per_round = measure(model, options, arguments.max_tokens)
            wanted, base = wanted or tokens, base or speed
            if tokens != wanted:
                sys.exit(f"{name}: {label} gave other tokens than plain decoding")
            rows.append((name.rsplit("/", 1)[-1], label, speed, speed / base, acceptance, per_round, "identical"))
            print(rows[-1], flush=True)
    print(device())
    header = ("model", "decoding", "tok/s", "of plain", "accepted of drafted", "tokens a round", "tokens")
    print_table(header, rows)
    write_json(arguments.json, {"rows": [dict(zip(header, row, strict=True)) for row in rows], **device()},
               benchmark="gpu_generate")  # fmt: skip


if __name__ == "__main__":
    main()
