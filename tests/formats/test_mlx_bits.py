"""MLX checkpoints whose codes are a stream of bits, and recipes that mix widths: the weights that MLX itself reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import tiny_config, tiny_weights, write_huggingface

from specdec.errors import ModelFormatError
from specdec.formats import open_source
from specdec.store import Store, convert
from specdec.weights.dtypes import from_float32, to_float32

mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

DTYPES = {"float16": "F16", "bfloat16": "BF16"}
STORED = DTYPES | {"float32": "F32"}


def quantised(name: str, value: np.ndarray, bits: int, group: int, dtype: str) -> tuple[dict[str, Any], np.ndarray]:
    """The three tensors that MLX makes of a weight, and the weights that they stand for, float32."""
    array = mx.array(value.astype(np.float32)).astype(getattr(mx, dtype))
    weight, scales, biases = mx.quantize(array, group_size=group, bits=bits)
    base, raw = (
        name.removesuffix(".weight"),
        lambda array: np.array(array if dtype == "float32" else array.view(mx.uint16)),
    )
    tensors = {name: ("U32", np.array(weight))}
    tensors |= {f"{base}.scales": (STORED[dtype], raw(scales)), f"{base}.biases": (STORED[dtype], raw(biases))}
    exact = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
    return tensors, np.array(exact)


def checkpoint(
    folder: Path, bits: dict[str, int], *, group: int = 32, dtype: str = "float16"
) -> tuple[Path, dict[str, np.ndarray]]:
    """A tiny checkpoint quantised by MLX, and its weights; `bits` is by part of a name, "" for all others."""
    tensors: dict[str, Any] = {}
    exact: dict[str, np.ndarray] = {}
    rules: dict[str, Any] = {"group_size": group, "bits": bits[""]}
    for name, value in tiny_weights("tiny-llama").items():
        if value.ndim == 1:
            raw = value.astype(np.float32)
            tensors[name] = (STORED[dtype], raw if dtype == "float32" else from_float32(raw, dtype))
            continue
        width = next(bits[key] for key in sorted(bits, key=len, reverse=True) if key in name)
        made, exact[name] = quantised(name, value, width, group, dtype)
        tensors |= made
        if width != bits[""]:
            rules[name.removesuffix(".weight")] = {"group_size": group, "bits": width}
    return write_huggingface(folder, tiny_config("tiny-llama") | {"quantization": rules}, tensors), exact


NAMES = {"embed": "model.embed_tokens.weight", "layers.1.mlp.down": "model.layers.1.mlp.down_proj.weight",
         "layers.0.attn.q": "model.layers.0.self_attn.q_proj.weight", "head": "lm_head.weight"}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 5, 6])
def test_weights_of_every_width(tmp_path: Path, bits: int, dtype: str) -> None:
    folder, exact = checkpoint(tmp_path, {"": bits}, dtype=dtype)
    with pytest.warns(UserWarning, match=f"does not keep weights of {bits} bits: they become 16-bit"):
        source = open_source(folder)
    assert (source.dtype, source.types) == (dtype, {})
    for ours, theirs in NAMES.items():
        np.testing.assert_array_equal(source.matrix(ours), from_float32(exact[theirs], dtype), err_msg=ours)


@pytest.mark.parametrize(("low", "high"), [(3, 6), (4, 6), (2, 6), (3, 4)])
def test_mixed_recipes(tmp_path: Path, low: int, high: int) -> None:
    bits = {"": low, "down_proj": high, "v_proj": high, "lm_head": high}
    folder, exact = checkpoint(tmp_path / "m", bits)
    with pytest.warns(UserWarning, match="bits: they become 16-bit"):
        source = open_source(folder)
    store = Store.open(convert(source, tmp_path / "store", quantised="keep" if source.types else None))
    assert ("layers.0.attn.q" in source.types) == (low == 4)
    for ours, theirs in NAMES.items():
        np.testing.assert_array_equal(to_float32(source.matrix(ours), "float16"), exact[theirs].astype(np.float16))
    assert store.config == source.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"bits": 7}, "has 7 bits in groups of 32: this version reads 2, 3, 4, 5, 6, 8 bits"),
     ({"bits": 5}, "does not fit scales")],
)  # fmt: skip
def test_widths_that_do_not_fit(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    folder, _ = checkpoint(tmp_path, {"": 3})
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match=message):
        open_source(folder)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_scales_in_32_bits(tmp_path: Path, bits: int) -> None:
    folder, exact = checkpoint(tmp_path, {"": bits}, dtype="float32")
    with pytest.warns(UserWarning, match=f"does not keep weights of {bits} bits with scales in 32 bits: they become"):
        source = open_source(folder)
    assert (source.dtype, source.types) == ("float16", {})
    for ours, theirs in NAMES.items():
        np.testing.assert_array_equal(source.matrix(ours), from_float32(exact[theirs], "float16"), err_msg=ours)
