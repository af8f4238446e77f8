"""Models of the plain decoder that tests of the native runtime run."""

from __future__ import annotations

from typing import Any

from places import DATA

TINY = sorted(path.name for path in DATA.glob("tiny-*"))
# Models of the plain decoder and what it had first; the other features are in `test_native_features`.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"architecture": "mistral", "sliding_window": 5, "first_sliding_layer": 1},
    "mixtral": {"architecture": "mixtral", "num_experts": 4, "experts_per_token": 2, "tie_embeddings": False},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "head_dim": 16},
}
