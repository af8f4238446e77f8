"""From the start of a process to the first token on the GPU: with nothing compiled or measured before, and after that.

    python benchmarks/gpu_start.py smollm2-135m qwen2.5-coder-0.5b --json results/gpu_start-DEVICE.json

A process imports the library, loads the model from its store, and answers a prompt, with speculation ("auto") or
without. "Cold" has an empty cache folder: kernels are compiled and costs measured. "Warm" is the median of several
processes after that. Files that were read lately are in memory, as on a machine in use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import PROMPTS, add_json_option, print_table, write_json
from gpu_common import device

from specdec.catalogue import resolve_model

# Seconds since the process was begun, at each step; `began` is on the same clock as the parent's.
_CHILD = """
import json, sys, time
began = float(sys.argv[1])
def since(): return time.time() - began
steps = {"interpreter": since()}
import specdec
from specdec.runtimes.mlx.device import find_gpu
find_gpu()
steps["imports"] = since()
model = specdec.load(sys.argv[2], runtime="mlx")
steps["loaded"] = since()
for piece in specdec.stream(model, sys.argv[3], max_tokens=8, **json.loads(sys.argv[4])):
    steps.setdefault("first token", since())
print(json.dumps(steps))
"""
CASES: dict[str, dict[str, Any]] = {"auto": {}, "plain": {"speculate": False}}


def started(store: Path, options: dict[str, Any], home: Path) -> dict[str, float]:
    """Seconds from the start of a process to each of its steps."""
    command = [sys.executable, "-c", _CHILD, repr(time.time()), str(store), PROMPTS[1], json.dumps(options)]
    # The compiler's own cache starts empty, too. Modules are compiled once, as those of an installed package are.
    own = {"SPECDEC_HOME": str(home), "CUDA_CACHE_PATH": str(home / "cuda")}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, env=inherited | own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a process failed: {done.stderr.strip()[-400:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """Step by step."""
    return {step: statistics.median(run[step] for run in runs) for step in runs[0]}


def main() -> None:
    """Start processes, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="catalogue names, stores, GGUF files or Hugging Face folders")
    parser.add_argument("--repeat", type=int, default=3, help="warm processes of each kind (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    steps = ("interpreter", "imports", "loaded", "first token")
    rows: list[tuple[Any, ...]] = []
    for name in arguments.models:
        store = resolve_model(name)
        with tempfile.TemporaryDirectory() as home:
            started(store, {}, Path(home))  # reads files and compiles modules
        for label, options in CASES.items():
            with tempfile.TemporaryDirectory() as home:
                cold = started(store, options, Path(home))
                warm = median([started(store, options, Path(home)) for _ in range(arguments.repeat)])
            for state, found in (("cold", cold), ("warm", warm)):
                rows.append((name.rsplit("/", 1)[-1], label, state, *(found[step] for step in steps)))
                print(rows[-1], flush=True)
    print(device())
    header = ("model", "decoding", "cache", *(f"{step} s" for step in steps))
    print_table(header, rows)
    write_json(arguments.json, {"rows": [dict(zip(header, row, strict=True)) for row in rows], **device()},
               benchmark="gpu_start")  # fmt: skip


if __name__ == "__main__":
    main()
