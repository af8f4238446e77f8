"""Runs a benchmark in several ranks and reads what rank 0 writes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def launched(script: str, words: Sequence[str], *, ranks: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """What rank 0 has written into the file that `--inside` names.

    Args:
        script: path of the benchmark.
        words: its command line, without `--inside`.
        ranks: processes to start.
        options: of `specdec launch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        launch = [sys.executable, "-m", "specdec", "launch", "-n", str(ranks), "--timeout-s", "60", *options]
        subprocess.run([*launch, "--", script, *words, "--inside", str(target)], check=True, stdin=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return found
