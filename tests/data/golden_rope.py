"""Makes `golden_rope.json`: logits by transformers of the tiny checkpoints here under scaled rotary positions.

Run it with torch 2.13 and transformers 5.24 installed: `python tests/data/golden_rope.py`. Tests only read the JSON.

Every case takes the weights of a checkpoint, changes fields of its config.json, and computes the logits of a text in
float32 in one pass, so that transformers chooses the factors of the text's length. `context` is the length that a model
has to be loaded for to have the same factors, null for the model's own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent
SHOWN = 32  # logits that are kept of a row
LISTS = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.8, 2.0],
    "long_factor": [1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
}


def yarn(*, original: int | None = 16, **more: Any) -> dict[str, Any]:
    """A rule; `original` of None leaves it out, other values of None are null."""
    stated = {} if original is None else {"original_max_position_embeddings": original}
    return {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0} | stated | more


# Name, checkpoint, changes to its config.json, tokens of the text, context.
CASES: list[tuple[str, str, dict[str, Any], int, int | None]] = [
    ("yarn", "tiny-qwen3", {"rope_parameters": yarn(rope_theta=1e6)}, 64, None),
    ("yarn, short text", "tiny-llama", {"rope_parameters": yarn()}, 12, None),
    ("yarn, long text", "tiny-llama", {"rope_parameters": yarn()}, 64, None),
    ("yarn, old keys", "tiny-qwen2", {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, 100, 128),
    ("yarn, original context of the model", "tiny-llama", {"rope_parameters": yarn(
        original=None, factor=2.0)}, 120, 128),
    ("yarn, original context outside", "tiny-llama", {"original_max_position_embeddings": 8, "rope_parameters": yarn(
        original=None, factor=8.0)}, 64, None),
    ("yarn, factor of the contexts", "tiny-llama", {"rope_parameters": yarn(factor=None)}, 64, None),
    ("yarn, betas", "tiny-llama", {"rope_parameters": yarn(
        original=40, beta_fast=8, beta_slow=0.5)}, 64, None),
    ("yarn, borders between pairs", "tiny-llama", {"rope_parameters": yarn(
        original=40, truncate=False)}, 64, None),
    ("yarn, attention_factor", "tiny-llama", {"rope_parameters": yarn(attention_factor=0.6)}, 64, None),
    ("yarn, mscale", "tiny-llama", {"rope_parameters": yarn(factor=40.0, mscale=1.0, mscale_all_dim=0.4)}, 64, None),
    ("yarn, mscale without mscale_all_dim", "tiny-llama", {"rope_parameters": yarn(mscale=2.0)}, 64, None),
    ("yarn, windows", "tiny-mistral", {"rope_parameters": yarn()}, 64, None),
    ("dynamic, short", "tiny-llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
     64, None),
    ("dynamic, one more", "tiny-llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}},
     65, 65),
    ("dynamic, long", "tiny-llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
     160, 160),
    ("dynamic, old keys", "tiny-qwen3", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
     100, 100),
    ("longrope, short", "tiny-llama", {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16} | LISTS},
     16, None),
    ("longrope, one more", "tiny-llama", {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16} | LISTS},
     17, 17),
    ("longrope, long", "tiny-llama", {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16} | LISTS},
     64, 64),
    ("longrope, old keys", "tiny-llama", {"rope_parameters": None, "original_max_position_embeddings": 16,
     "rope_scaling": {"type": "longrope"} | LISTS}, 60, 64),
    ("longrope, attention_factor", "tiny-llama", {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "attention_factor": 1.4, "original_max_position_embeddings": 16}
        | LISTS}, 40, 64),
    ("linear, beyond max_position_embeddings", "tiny-llama", {"rope_parameters": {
        "rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}, 150, 192),
    ("rope_scaling beside rope_parameters", "tiny-llama", {"rope_theta": 1e4, "rope_scaling": {
        "rope_type": "linear", "factor": 3.0}}, 64, None),
]  # fmt: skip


def golden(name: str, checkpoint: str, changes: dict[str, Any], length: int, context: int | None) -> dict[str, Any]:
    """A case with its logits."""
    import torch
    from transformers import AutoModelForCausalLM

    fields = json.loads((DATA / checkpoint / "config.json").read_text()) | {"max_position_embeddings": 64} | changes
    fields = {key: value for key, value in fields.items() if value is not None}
    ids = [int(token) for token in np.random.default_rng(length).integers(3, fields["vocab_size"], length)]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(DATA / checkpoint / "model.safetensors", folder)
        Path(folder, "config.json").write_text(json.dumps(fields))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
    rows = sorted({0, length // 3, 2 * length // 3, length - 1})
    return {
        "name": name,
        "checkpoint": checkpoint,
        "fields": fields,
        "context": context,
        "ids": ids,
        "logits": {str(row): [round(float(x), 5) for x in logits[row, :SHOWN]] for row in rows},
    }


def main() -> None:
    """Write the file."""
    cases = [json.dumps(golden(*case)) for case in CASES]
    (DATA / "golden_rope.json").write_text("[\n" + ",\n".join(cases) + "\n]\n")


if __name__ == "__main__":
    main()
