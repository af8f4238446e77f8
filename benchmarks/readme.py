# ruff: noqa: E501 (prose)
"""The figures of the README, told from the files that they come from."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

_BEGIN, _END = "<!-- written by benchmarks/render.py -->\n", "<!-- until here -->\n"


def how_fast(results: Path) -> str:
    """How fast, and beside whom, from the results in a folder."""
    rows = json.loads((results / "peers-qwen2.5-coder-1.5b.json").read_text(encoding="utf-8"))["results"]["rows"]
    beside = {row["contender"]: row["ratio_to_plain"] for row in rows if row["task"] == "all"}
    twin = _mean_of_tasks(results / "bench-qwen2.5-coder-1.5b-dithered-auto.json", "auto")
    original = _mean_of_tasks(results / "bench-qwen2.5-coder-1.5b.json", "auto")
    errors = [_noise(results / f"bench-qwen2.5-coder-1.5b{kind}.json") for kind in ("-dithered-auto", "")]
    same = "llama.cpp dithered F16"
    return _paragraph(
        "On two CPU cores with AVX-512, Qwen2.5-Coder-1.5B, greedy, mean over seven kinds of prompt: `auto` gives "
        f"{twin:.2f} times the tokens a second of plain decoding with 16 real bits in every weight, and {original:.2f} times "
        f"with the original's values in 16 bits (noise of the machine left a standard error of {errors[0]:.0%} and "
        f"{errors[1]:.0%}). Beside llama.cpp, on three kinds of prompt and the same weights in F16, "
        f"`auto` gives {beside['specdec auto']:.2f} times our plain decoding, llama.cpp {beside[same]:.2f} plain, "
        f"{beside[f'{same}, draft qwen2.5-coder-0.5b']:.2f} with the 0.5B model as its draft and "
        f"{beside[f'{same}, lookup']:.2f} with n-gram lookup. {_quantised(results)} [BENCHMARKS.md](BENCHMARKS.md) has "
        "every number with its command, [docs/cpu.md](docs/cpu.md) what limits them."
    )


def _quantised(results: Path) -> str:
    """Beside llama.cpp on the very same 8-bit and 4-bit file."""
    told = []
    for kind in ("q8_0", "q4_k_m"):
        found = json.loads((results / f"peers-qwen2.5-coder-1.5b-{kind}.json").read_text(encoding="utf-8"))["results"]
        over_plain = {row["contender"]: row["ratio_to_plain"] for row in found["rows"] if row["task"] == "all"}
        theirs = {name: ratio for name, ratio in over_plain.items() if name.startswith("llama.cpp")}
        best = max(theirs, key=lambda name: theirs[name])
        mode = best.partition(", ")[2] or "plain"
        mode = "with a draft model" if mode.startswith("draft") else "with lookup" if mode == "lookup" else mode
        told.append(
            f"in {kind.upper()} `auto` gives {over_plain['specdec auto'] / theirs[best]:.1f} times the tokens a second of "
            f"llama.cpp's best way ({mode}), and plain decoding {1 / theirs[min(theirs, key=len)]:.1f} times its plain one"
        )
    return f"8-bit and 4-bit models stay as they are; on the very same file, {'; '.join(told)}."


def _mean_of_tasks(file: Path, contender: str) -> float:
    """The mean of the tasks' speed-ups in a result of `specdec bench`."""
    rows = json.loads(file.read_text(encoding="utf-8"))["results"]["rows"]
    return float(next(row["mean_of_tasks"] for row in rows if (row["contender"], row["task"]) == (contender, "all")))


def _noise(file: Path) -> float:
    """The standard error that noise left in the speed-ups of a result of `specdec bench`."""
    return float(json.loads(file.read_text(encoding="utf-8"))["results"]["noise"]["error"])


def with_section(readme: str, section: str) -> str:
    """The README with the section between its two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, rest = readme.split(_BEGIN)
    return before + _BEGIN + section + _END + rest.split(_END)[1]


def _paragraph(text: str) -> str:
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False) + "\n"
