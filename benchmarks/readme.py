# ruff: noqa: E501 (prose)
"""The figures of the README, told from the files that they come from."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

_BEGIN, _END = "<!-- written by benchmarks/render.py -->\n", "<!-- until here -->\n"


def how_fast(results: Path) -> str:
    """How fast, and beside whom, from the results in a folder."""
    file = "end-to-end-qwen2.5-coder-1.5b-dithered.json"
    rows = json.loads((results / file).read_text(encoding="utf-8"))["results"]["rows"]
    times = {row["contender"]: row["ratio_to_plain"] for row in rows if row["task"] == "mean over tasks"}
    mean = _mean_of_tasks(results / "bench-qwen2.5-coder-1.5b-dithered.json", "auto")
    policies = json.loads((results / "policies-qwen2.5-coder-1.5b-dithered.json").read_text(encoding="utf-8"))[
        "results"
    ]
    auto = next(
        row["ratio_to_plain"]
        for row in policies["rows"]
        if (row["contender"], row["task"], row["temperature"]) == ("auto", "mean over tasks", 0)
    )
    plain = times["llama.cpp F16"]
    if round(plain, 1) != 1.0:
        raise ValueError("plain decoding and llama.cpp's F16 are no longer equally fast: tell them apart in this text")
    return _paragraph(
        "On two CPU cores with AVX-512, Qwen2.5-Coder-1.5B with 16 real bits in every weight, greedy, mean over seven "
        f"kinds of prompt: `auto` gives {mean:.1f} to {auto:.1f} times the tokens a second of plain decoding, by run (the "
        "memory of that machine is faster at one time than at another). Drafting 4 tokens a round with `int4` at effort 0.7 "
        f"gave {times['int4:0.7:4']:.1f} times in a run beside llama.cpp, where that was also {times['int4:0.7:4'] / plain:.1f} "
        "times llama.cpp's plain decoding of the same weights in F16, whose own "
        f"speculation with the 0.5B model gives {times['llama.cpp F16, draft model 0.5B']:.1f} and with n-gram lookup "
        f"{times['llama.cpp F16, n-gram lookup']:.1f}. {_quantised(results)} [BENCHMARKS.md](BENCHMARKS.md) has "
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


def with_section(readme: str, section: str) -> str:
    """The README with the section between its two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, rest = readme.split(_BEGIN)
    return before + _BEGIN + section + _END + rest.split(_END)[1]


def _paragraph(text: str) -> str:
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False) + "\n"
