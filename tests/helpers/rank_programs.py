"""Programs that tests start in several ranks, and how they start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PATIENCE_S = 240  # for all ranks to end; they share the cores with other tests
TIMEOUT_S = "120"

# Loads each model of the command line in turn, and writes what rank 0 finds: logits, tokens with and without drafts,
# those of a batch.
ANSWERS = """
import json, sys
import specdec

found = []
for path, runtime in zip(sys.argv[2::2], sys.argv[3::2]):
    model = specdec.load(path, runtime=runtime, threads=1)
    ids = list(range(1, 20))
    one = {f"logits at {effort}": model.logits(ids, effort=effort)[-3:].tobytes().hex() for effort in (1.0, 0.5)}
    for name, options in OPTIONS.items():
        one[name] = list(specdec.generate(model, ids, max_tokens=12, ignore_eos=True, **options).tokens)
    with specdec.Batch(model) as batch:
        tickets = [batch.submit(ids[:n], max_tokens=6, temperature=0, ignore_eos=True) for n in (3, 9, 14)]
        one["batch"] = [(list(ticket), list(ticket.result().tokens))[1] for ticket in tickets]
    found.append(one)
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
""".replace(
    "OPTIONS",
    repr(
        {
            "plain": {"temperature": 0, "speculate": False},
            "drafted": {"temperature": 0, "drafter": "effort", "policy": "fixed", "draft_len": 3},
            "ngram": {"temperature": 0, "drafter": "ngram"},
            "sampled": {"temperature": 0.9, "seed": 5},
        }
    ),
)


def launch_words(*words: str, ranks: int, timeout_s: str = TIMEOUT_S) -> list[str]:
    """A command line that starts `words` in so many ranks."""
    return [
        sys.executable,
        "-m",
        "specdec",
        "launch",
        "-n",
        str(ranks),
        "--timeout-s",
        timeout_s,
        "--backend",
        "ring",
        "--",
        *words,
    ]


def environment(**more: str) -> dict[str, str]:
    """Of processes whose threads do not crowd the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **more}


def run(words: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        env=environment(),
        check=False,
        **given,
    )


def answers(folder: Path, models: list[tuple[str, str]], *, ranks: int | None) -> list[dict[str, Any]]:
    """What `ANSWERS` finds of models, (path, runtime) each, in so many ranks; None starts it without a launcher."""
    script, target = folder / "answers.py", folder / f"found-{ranks}.json"
    script.write_text(ANSWERS, encoding="utf-8")
    words = [str(script), str(target), *(word for pair in models for word in pair)]
    ended = run([sys.executable, *words] if ranks is None else launch_words(*words, ranks=ranks))
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(target.read_text(encoding="utf-8"))
    return found
