"""Tiny checkpoints that MLX has quantised, laid out as mlx-lm saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import tiny_config, tiny_weights, write_huggingface


def mlx_checkpoint(folder: Path, name: str, plan: dict[str, Any], *, dtype: str = "float16", **more: Any) -> Path:
    """A tiny checkpoint quantised by MLX and laid out as mlx-lm saves it; `plan` is config.json's `quantization`."""
    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    kind = {"float16": mx.float16, "bfloat16": mx.bfloat16}[dtype]
    code = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for key, values in stacked_experts(tiny_weights(name)).items():
        layer = key.removesuffix(".weight")
        with mx.stream(mx.cpu):
            array = mx.array(values).astype(kind)
            if values.ndim == 1 or plan.get(layer) is False:
                tensors[key] = code, np.array(array.view(mx.uint16))
                continue
            how = {name: plan.get(layer, plan)[name] for name in ("group_size", "bits")}
            words, scales, biases = mx.quantize(array, **how)
            tensors[key] = "U32", np.array(words)
            tensors[f"{layer}.scales"] = code, np.array(scales.view(mx.uint16))
            tensors[f"{layer}.biases"] = code, np.array(biases.view(mx.uint16))
    config = tiny_config(name) | {"quantization": plan, "quantization_config": plan} | more
    return write_huggingface(folder, config, tensors)


def stacked_experts(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """mlx-lm's layout of a mixture: the experts of a layer in one tensor for each projection."""
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    found: dict[str, Any] = {}
    for key, values in weights.items():
        if ".experts." not in key:
            found[key] = values
            continue
        base, rest = key.split(".experts.")
        found.setdefault(f"{base}.switch_mlp.{names[rest.split('.')[1]]}.weight", []).append(values)
    return {key: np.stack(value) if isinstance(value, list) else value for key, value in found.items()}
