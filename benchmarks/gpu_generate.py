"""Real models on the GPU: tokens a second plain and speculative, one answer and several at once, beside other programs.

    python benchmarks/gpu_generate.py smollm2-135m qwen2.5-coder-0.5b --json results/gpu_generate-DEVICE.json
    python benchmarks/gpu_generate.py model.store --gguf model.gguf --llama BIN --mlx-lm HF_FOLDER

Contenders take turns after every prompt, so that a machine that slows down slows all of them; of each the median of the
rounds counts. Every answer of specdec has to have the tokens of its plain decoding. Rates are tokens over decoding
time, without the prompt, as the peers count them, too.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import PROMPTS, add_json_option, print_table, write_json
from gpu_common import device
from peer_llama import version as llama_version
from peer_python import Worker

import specdec

Answer = Callable[[str], "Answered"]


@dataclass
class Answered:
    """One answer, or several at once: tokens of all, seconds of decoding, and what was drafted and accepted."""

    count: int
    seconds: float
    tokens: list[list[int]] = field(default_factory=list)
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


def cases(model: Any) -> dict[str, dict[str, Any]]:
    """What to ask specdec for, by label; the first is what the others are compared with."""
    view = "nested" if model.store.quantised else "int4"
    drafts = {"policy": "fixed", "drafter": "effort", "draft_view": view, "draft_effort": 1.0}
    return {
        "plain": {"speculate": False},
        f"fixed 4, {view} at 1.0": drafts,
        "fixed 8, lookup": {"policy": "fixed", "drafter": "ngram", "draft_len": 8},
        "auto": {},
    }


def one_answer(model: Any, options: dict[str, Any], max_tokens: int) -> Answer:
    """Answers of specdec, one at a time."""

    def answer(prompt: str) -> Answered:
        result = specdec.generate(model, prompt, max_tokens=max_tokens, **options)
        stats, count = result.stats, len(result.tokens)
        return Answered(count, stats.decode_s, [result.tokens], stats.rounds, stats.drafted, stats.accepted)

    return answer


def answers_at_once(model: Any, options: dict[str, Any], max_tokens: int, requests: int) -> Answer:
    """Answers of specdec to so many requests that come at the same time, from the first pass to the last."""

    def answer(prompt: str) -> Answered:
        prompts = [f"{number}. {prompt}" for number in range(requests)]
        began_s = time.perf_counter()
        results = specdec.generate(model, prompts, max_tokens=max_tokens, **options)
        seconds = time.perf_counter() - began_s
        tokens = [result.tokens for result in results]
        return Answered(sum(map(len, tokens)), seconds, tokens)

    return answer


def llama_answer(folder: Path, file: Path, max_tokens: int) -> Answer:
    """Answers of llama.cpp with all layers on the GPU."""
    command = [str(folder / "llama-completion"), "-m", str(file), "-ngl", "99", "-no-cnv", "-n", str(max_tokens)]

    def answer(prompt: str) -> Answered:
        done = subprocess.run(
            [*command, "--temp", "0", "--ignore-eos", "-p", prompt],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        found = re.search(r"\beval time =\s*([\d.]+) ms /\s*(\d+) runs", done.stdout + done.stderr)
        if found is None:
            raise SystemExit(f"llama-completion printed no timing; its last output: {done.stderr[-300:]}")
        return Answered(int(found[2]), float(found[1]) / 1000)

    return answer


def mlx_answer(worker: Worker, model: Any, max_tokens: int) -> Answer:
    """Answers of mlx-lm, from the ids that specdec makes of a prompt."""

    def answer(prompt: str) -> Answered:
        ids = model.tokenizer.encode_chat([{"role": "user", "content": prompt}], variables={})
        found = worker.ask({"ids": ids, "mode": "plain", "max_tokens": max_tokens, "num_draft_tokens": 0})
        return Answered(found["tokens"], found["seconds"])

    return answer


def contenders(model: Any, arguments: argparse.Namespace) -> dict[str, Answer]:
    """Everything that answers, by label, plain decoding first."""
    found = {label: one_answer(model, options, arguments.max_tokens) for label, options in cases(model).items()}
    for requests in arguments.requests:
        for label, options in (("plain", {"speculate": False}), ("auto", {})):
            at_once = answers_at_once(model, options, arguments.max_tokens, requests)
            found[f"{requests} at once {label}"] = at_once
    if arguments.llama is not None and arguments.gguf is not None:
        print(f"llama.cpp {llama_version(arguments.llama)}")
        found[f"llama.cpp {arguments.gguf.stem}"] = llama_answer(arguments.llama, arguments.gguf, arguments.max_tokens)
    if arguments.mlx_lm is not None:
        worker = Worker(arguments.python, "peer_mlx_lm.py", [arguments.mlx_lm, "-"])
        print(worker.version)
        found["mlx-lm"] = mlx_answer(worker, model, arguments.max_tokens)
    return found


def compare(name: str, answers: dict[str, Answer], repeat: int) -> list[tuple[Any, ...]]:
    """Rates of all contenders, who take turns prompt by prompt; the first round warms up and does not count.

    Raises:
        SystemExit: specdec's answers to a prompt differ.
    """
    rates: dict[str, list[float]] = {label: [] for label in answers}
    last: dict[str, list[Answered]] = {}
    wanted: dict[tuple[int, int], list[list[int]]] = {}
    for turn in range(repeat + 1):
        taken: dict[str, list[Answered]] = {label: [] for label in answers}
        for place, prompt in enumerate(PROMPTS):
            for label, answer in answers.items():
                found = answer(prompt)
                taken[label].append(found)
                if found.tokens and found.tokens != wanted.setdefault((place, len(found.tokens)), found.tokens):
                    sys.exit(f"{name}: {label} gave other tokens than plain decoding")
        if turn:
            for label, several in taken.items():
                rates[label].append(sum(one.count for one in several) / sum(one.seconds for one in several))
        last = taken
    base = statistics.median(rates["plain"])
    rows = []
    for label, speeds in rates.items():
        speed, total = statistics.median(speeds), last[label]
        drafted, rounds = sum(one.drafted for one in total), sum(one.rounds for one in total)
        acceptance = sum(one.accepted for one in total) / drafted if drafted else 0.0
        per_round = sum(one.count for one in total) / rounds if rounds else 0.0
        checked = "identical" if total[0].tokens else "not compared"
        rows.append(
            (name, label, speed, speed / base, (max(speeds) - min(speeds)) / speed, acceptance, per_round, checked)
        )
    return rows


def main() -> None:
    """Generate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="catalogue names, stores, GGUF files or Hugging Face folders")
    parser.add_argument("--max-tokens", type=int, default=96, help="of each answer (default %(default)s)")
    parser.add_argument(
        "--requests", type=int, nargs="+", default=[16], metavar="N", help="that come at the same time (default: 16)"
    )
    parser.add_argument("--repeat", type=int, default=3, help="rounds that count (default %(default)s)")
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="of llama.cpp's programs, built for CUDA")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="that llama.cpp runs: the model's own weights")
    parser.add_argument("--mlx-lm", type=Path, metavar="FOLDER", help="Hugging Face folder that mlx-lm runs")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter with mlx-lm")
    add_json_option(parser)
    arguments = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    for name in arguments.models:
        model = specdec.load(name, runtime="mlx")
        rows += compare(name.rsplit("/", 1)[-1], contenders(model, arguments), arguments.repeat)
        for row in rows:
            print(row, flush=True)
    print(device())
    header = ("model", "decoding", "tok/s", "of plain", "spread", "accepted of drafted", "tokens a round", "tokens")
    print_table(header, rows)
    write_json(arguments.json, {"rows": [dict(zip(header, row, strict=True)) for row in rows], **device()},
               benchmark="gpu_generate")  # fmt: skip


if __name__ == "__main__":
    main()
