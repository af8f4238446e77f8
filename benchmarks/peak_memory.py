"""Peak memory of a process on a CPU, relative to the size of the model file.

Every run is a process of its own with `specdec generate`. Its peak resident memory counts: weights, nested drafts,
cache, vocabulary and Python. Files are converted before.

    python benchmarks/peak_memory.py model-q8_0.gguf model-q4_k_m.gguf --share 1 0.8 0.5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import add_json_option, print_machine, print_table, write_json

from specdec.catalogue import resolve_model
from specdec.store import Store

_PROMPT = "Write a Python function that merges two sorted lists, and explain it."
# What starts a program counts among the most that `getrusage` remembers; Linux also keeps the program's own.
_OWN_PEAK = """
import re, resource, sys
from pathlib import Path
from specdec.cli.main import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
print(peak)
sys.exit(code)
"""


def peak(store: Path, share: float, tokens: int) -> tuple[int, dict[str, Any]]:
    """Most bytes that a process has resident while it loads a model and answers, and what it says of its answer."""
    command = [sys.executable, "-c", _OWN_PEAK, "generate", "--model", str(store), "--runtime", "native", "--json"]
    command += ["--load-share", str(share), "--policy", "fixed", "--draft-len", "3"]
    command += ["--drafter", "effort", "--draft-view", "nested", "--draft-effort", "0.7"]
    command += ["--prompt", _PROMPT, "--max-tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{store.name} at {share:g}: {done.stderr.strip()}")
    *answer, most = done.stdout.strip().splitlines()
    return int(most), json.loads("\n".join(answer))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help=".gguf files of quantised models")
    parser.add_argument("--share", type=float, nargs="+", default=[1.0], help="of the weights to load (default 1)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of each answer (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts")
    add_json_option(parser)
    arguments = parser.parse_args()
    rows = []
    for file in arguments.files:
        store, size = resolve_model(file), file.stat().st_size
        for share in arguments.share:
            runs = [peak(store, share, arguments.max_tokens) for _ in range(arguments.repeat)]
            stats, loaded = runs[0][1]["stats"], Store.open(store, verify=False, load_share=share).loaded_share
            peaks = [most for most, _ in runs]
            middle, spread = statistics.median(peaks), (max(peaks) - min(peaks)) / size
            rows.append((file.stem, size, share, loaded, stats["drafted"], middle, middle / size, spread))
    print_machine()
    header = ("file", "bytes", "share", "loaded", "drafted", "peak", "peak over file", "spread")
    print_table(header, rows)
    write_json(arguments.json, {"rows": [dict(zip(header, row, strict=True)) for row in rows]}, benchmark="peak_memory")


if __name__ == "__main__":
    main()
