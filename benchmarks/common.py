"""What every benchmark shares: prompts, a table printer and a JSON file at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specdec.record import command_line, machine, record
from specdec.record import write_json as write_record

PROMPTS = (
    "Write a Python function that merges two sorted lists without using sort, and explain its running time.",
    "Explain to a ten-year-old why the sky is blue in the day and red at sunset.",
    "A train leaves at 9:40 and arrives at 13:05 after two stops of 5 minutes each. How long was it moving? "
    "Think step by step.",
    "Write a short letter to a landlord asking to have a broken heater repaired before winter.",
)


def print_machine() -> None:
    """Print the machine's description on one line."""
    info = machine()
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    print(f"{info['device']}, {info['cores']} cores, Python {info['python']}, {versions}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table, columns padded to equal width; floats with three decimals."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for index, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE`, where `write_json` puts the results."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results, with the machine, as JSON")


def write_json(path: Path | None, results: Any, *, benchmark: str) -> None:
    """Write results with machine and command to `path` (nothing when it is None)."""
    if path is None:
        return
    command = command_line(f"python benchmarks/{Path(sys.argv[0]).name}", sys.argv[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record(benchmark, command=command, results=results))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (…, V) in float64 from logits (…, V)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
