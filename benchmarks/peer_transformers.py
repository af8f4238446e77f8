"""transformers as a peer, run by `peers` in an environment of its own: answers on standard output, a JSON line for each
prompt on standard input. Needs nothing of specdec.

    python peer_transformers.py FOLDER DRAFT_FOLDER|- THREADS
"""

import json
import sys
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class FirstToken(BaseStreamer):
    """Notes when the first tokens of an answer came, and how many they were."""

    def __init__(self) -> None:
        self.puts: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.puts.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        pass


def load(path: str) -> Any:
    """A model in bfloat16, the 16-bit type that processors multiply, on the CPU."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()


def answer(model: Any, draft: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens after the prompt's ids; the clock starts when the first of them is there."""
    ids = torch.tensor([request["ids"]])
    extra: dict[str, Any] = {}
    if request["mode"] == "assisted":
        extra["assistant_model"] = draft
    elif request["mode"] == "lookup":
        extra["prompt_lookup_num_tokens"] = request["num_draft_tokens"]
    streamer = FirstToken()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request["max_tokens"],
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            streamer=streamer,
            **extra,
        )
    came_s, first = streamer.puts[1]  # the prompt itself is put first
    tokens = out.shape[1] - ids.shape[1] - first
    found = {"tokens": tokens, "seconds": streamer.puts[-1][0] - came_s, "drafted": 0, "accepted": 0}
    return found | {"ids": out[0, ids.shape[1] :].tolist()}


def main() -> None:
    """Answer until the input ends."""
    model_path, draft_path, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = load(model_path)
    draft = None
    if draft_path != "-":
        draft = load(draft_path)
        draft.generation_config.num_assistant_tokens = 4
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0
    print(json.dumps({"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, draft, json.loads(line))), flush=True)


main()
