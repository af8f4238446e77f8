"""mlx-lm as a peer, run by `peers` in an environment of its own: answers on standard output, a JSON line for each
prompt on standard input. Needs nothing of specdec.

    python peer_mlx_lm.py HF_FOLDER DRAFT_FOLDER|-
"""

import json
import sys
import time
from importlib import metadata
from typing import Any

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import stream_generate


def answer(model: Any, tokenizer: Any, draft: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens after the prompt's ids; the clock starts when the first of them is there."""
    extra = (
        {"draft_model": draft, "num_draft_tokens": request["num_draft_tokens"]} if request["mode"] == "draft" else {}
    )
    came_s, written, accepted = [], [], 0
    for piece in stream_generate(model, tokenizer, request["ids"], max_tokens=request["max_tokens"], **extra):
        came_s.append(time.perf_counter())
        written.append(int(piece.token))
        accepted += bool(piece.from_draft)
    seconds = came_s[-1] - came_s[0]
    return {"tokens": len(came_s) - 1, "seconds": seconds, "drafted": 0, "accepted": accepted, "ids": written}


def main() -> None:
    """Answer until the input ends."""
    folder, draft_folder = sys.argv[1:]
    model, tokenizer = load(folder)
    draft = None if draft_folder == "-" else load(draft_folder)[0]
    mx.eval(model.parameters())
    version = f"mlx-lm {metadata.version('mlx-lm')}, mlx {metadata.version('mlx')}, {mx.default_device()}"
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, tokenizer, draft, json.loads(line))), flush=True)


main()
