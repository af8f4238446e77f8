"""Weights in MXFP4: exact values, from gpt-oss's folders, mlx-lm's and GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import config_of, mlx_weights, weights_of, write_family_gguf
from gguf import GGMLQuantizationType
from model_files import write_gguf, write_huggingface

from specdec.errors import ModelFormatError
from specdec.formats import open_source
from specdec.formats.gguf_file import GGUFFile
from specdec.formats.mxfp4 import GROUP, dequantise
from specdec.weights.dtypes import to_float32

# Codes by their number; the upper half has the sign.
VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def random_groups(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (rows, columns), exponents and the weights that they mean, in float64."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, columns), dtype=np.uint8)
    exponents = random.integers(110, 130, (rows, columns // GROUP), dtype=np.uint8)
    signs = np.where(codes >= 8, -1.0, 1.0)
    powers = np.repeat(2.0 ** (exponents.astype(int) - 127), GROUP, axis=1)
    return codes, exponents, signs * np.array(VALUES)[codes & 7] * powers


def packed(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the first in the lower half."""
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)


def test_every_code_and_power_is_exact() -> None:
    codes, exponents, weights = random_groups(7, 96, 0)
    assert np.array_equal(dequantise(packed(codes), exponents), weights)
    assert np.isnan(dequantise(packed(codes), np.full_like(exponents, 255))).all()


def shapes() -> dict[str, tuple[int, int, int]]:
    """Experts, rows and columns of the tensors that gpt-oss keeps in MXFP4."""
    config = config_of("gpt-oss")
    experts, width, hidden = config["num_local_experts"], config["intermediate_size"], config["hidden_size"]
    return {"gate_up_proj": (experts, 2 * width, hidden), "down_proj": (experts, hidden, width)}


def groups_of(layer: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all experts of a layer: codes, exponents and weights, (experts, rows, ...)."""
    experts, rows, columns = shapes()[name]
    found = random_groups(experts * rows, columns, 10 * layer + len(name))
    codes, exponents, weights = (one.reshape(experts, rows, -1) for one in found)
    return codes, exponents, weights


def check(source: Any) -> None:
    assert (source.dtype, set(source.types.values())) == ("bfloat16", {"mxfp4"})
    for layer in (0, 2):
        pairs, down = groups_of(layer, "gate_up_proj")[2], groups_of(layer, "down_proj")[2]
        for expert in (0, 3):
            base = f"layers.{layer}.mlp.experts.{expert}"
            wanted = {"gate": pairs[expert, 0::2], "up": pairs[expert, 1::2], "down": down[expert]}
            for part, values in wanted.items():
                assert np.array_equal(to_float32(source.matrix(f"{base}.{part}"), source.dtype), values)


def folder_tensors() -> dict[str, tuple[str, np.ndarray]]:
    found: dict[str, tuple[str, np.ndarray]] = {}
    for key, value in weights_of("gpt-oss").items():
        part = key.rpartition(".")[2]
        if part not in shapes():
            found[key] = ("F16", value)
            continue
        codes, exponents, _ = groups_of(int(key.split(".")[2]), part)
        blocks = packed(codes.reshape(-1, codes.shape[-1])).reshape(*exponents.shape, GROUP // 2)
        found |= {f"{key}_blocks": ("U8", blocks), f"{key}_scales": ("U8", exponents)}
    return found


def test_a_folder_of_gpt_oss(tmp_path: Path) -> None:
    config = config_of("gpt-oss") | {"quantization_config": {"quant_method": "mxfp4"}}
    tensors = folder_tensors()
    check(open_source(write_huggingface(tmp_path / "m", config, tensors)))
    broken = dict(tensors)
    name = "model.layers.1.mlp.experts.down_proj"
    del broken[f"{name}_scales"]
    with pytest.raises(ModelFormatError, match=r"lacks tensor '.*down_proj_scales' of weights in MXFP4"):
        open_source(write_huggingface(tmp_path / "lacks", config, broken))
    broken[f"{name}_scales"] = ("U8", tensors[f"{name}_scales"][1][:, :-1])
    with pytest.raises(ModelFormatError, match="must be U8, groups of 16 bytes and an exponent for each"):
        open_source(write_huggingface(tmp_path / "short", config, broken))
    endless = dict(tensors)
    endless[f"{name}_scales"] = ("U8", np.full_like(tensors[f"{name}_scales"][1], 255))
    source = open_source(write_huggingface(tmp_path / "endless", config, endless))
    with pytest.raises(ModelFormatError, match="down_proj_blocks' holds NaN or infinity"):
        source.matrix("layers.1.mlp.experts.0.down")


def test_a_folder_of_mlx_lm(tmp_path: Path) -> None:
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for key, value in mlx_weights("gpt-oss").items():
        if ".experts." not in key or not key.endswith(".weight"):
            tensors[key] = ("F16", value)
            continue
        layer, part = key.split(".")[2], key.split(".")[-2].removesuffix("_proj")
        codes, exponents, _ = groups_of(int(layer), "down_proj" if part == "down" else "gate_up_proj")
        rows = {"gate": slice(0, None, 2), "up": slice(1, None, 2), "down": slice(None)}[part]
        own = np.ascontiguousarray(codes[:, rows])
        words = packed(own.reshape(-1, own.shape[-1])).view("<u4").reshape(*own.shape[:2], -1)
        stem = key.removesuffix(".weight")
        tensors |= {key: ("U32", words), f"{stem}.scales": ("U8", np.ascontiguousarray(exponents[:, rows]))}
    config = config_of("gpt-oss") | {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    check(open_source(write_huggingface(tmp_path / "m", config, tensors)))
    name = "model.layers.0.mlp.experts.up_proj.scales"
    tensors[name] = ("F16", tensors[name][1].astype(np.float16))
    with pytest.raises(ModelFormatError, match=r"does not fit scales .* of type F16 for MXFP4"):
        open_source(write_huggingface(tmp_path / "other", config, tensors))


def test_a_gguf_file(tmp_path: Path) -> None:
    plain = GGUFFile(write_family_gguf(tmp_path / "plain.gguf", "gpt-oss"))
    metadata = {key: value for key, value in plain.metadata.items() if not key.startswith("GGUF.")}
    tensors: dict[str, Any] = {}
    for name in plain.names():
        shape = plain.shape(name)
        tensors[name] = plain.float32(name, 0, int(np.prod(shape[:-1]))).reshape(shape)
        if not name.endswith("_exps.weight"):
            continue
        part = name.split(".")[2].removeprefix("ffn_").removesuffix("_exps")
        codes, exponents, _ = groups_of(int(name.split(".")[1]), "down_proj" if part == "down" else "gate_up_proj")
        rows = {"gate": slice(0, None, 2), "up": slice(1, None, 2), "down": slice(None)}[part]
        own, powers = codes[:, rows], exponents[:, rows]
        # A block: the exponent, then code j below code j + 16 in byte j.
        halves = own.reshape(*powers.shape, 2, GROUP // 2)
        data = np.concatenate([powers[..., None], halves[..., 0, :] | halves[..., 1, :] << 4], axis=-1)
        tensors[name] = (data.reshape(*own.shape[:2], -1), GGMLQuantizationType.MXFP4)
    check(open_source(write_gguf(tmp_path / "m.gguf", metadata, tensors)))


def test_a_method_of_another_program_is_refused(tmp_path: Path) -> None:
    config = config_of("gpt-oss") | {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(
        ModelFormatError, match=r"quantised \(quantization_config: fp8\), and only MLX's and GGUF's own"
    ):
        open_source(write_huggingface(tmp_path / "m", config, folder_tensors()))
