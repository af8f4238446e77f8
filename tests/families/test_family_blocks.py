"""Quantised tensors that hold several matrices: the blocks of each are its own rows, whichever way they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import FOLDER, config_of, mlx_weights, write_family_gguf
from gguf import GGMLQuantizationType, dequantize, quantize
from model_files import write_gguf, write_huggingface

from specdec.formats import open_source
from specdec.formats.gguf_file import GGUFFile
from specdec.weights.dtypes import to_float32

Q8 = GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("name", ["phi3", "glm4", "granitemoeshared", "gpt-oss", "smollm3"])
def test_blocks_of_gguf_files(tmp_path: Path, name: str) -> None:
    plain = GGUFFile(write_family_gguf(tmp_path / "plain.gguf", name))
    tensors: dict[str, Any] = {}
    for key in plain.names():
        shape = plain.shape(key)
        values = plain.float32(key, 0, int(np.prod(shape[:-1]))).reshape(shape)
        blocks = len(shape) > 1 and shape[-1] % 32 == 0 and key.endswith(".weight")
        tensors[key] = (quantize(values, Q8), Q8) if blocks else values
    original, source = open_source(FOLDER / name), open_source(write_gguf(tmp_path / "m.gguf", plain.metadata, tensors))
    assert source.types
    for matrix, kind in source.types.items():
        rows = to_float32(original.matrix(matrix), original.dtype)
        table = source.quantised(matrix, kind)
        # Rows are quantised one by one, so the order of doing it and of bringing them into place does not matter.
        np.testing.assert_array_equal(table.rows(np.arange(len(rows))), dequantize(quantize(rows, Q8), Q8))


@pytest.mark.parametrize("name", ["gpt-oss", "phi3", "granitemoe", "glm4"])
def test_rows_of_a_folder_that_are_quantised_on_reading(name: str) -> None:
    source = open_source(FOLDER / name)
    for matrix, (_, inputs) in source.config.matrices().items():
        if inputs % 32 == 0:
            rows = to_float32(source.matrix(matrix), source.dtype)
            table = source.quantised(matrix, "q8_0")
            np.testing.assert_array_equal(table.rows(np.arange(len(rows))), dequantize(quantize(rows, Q8), Q8))


@pytest.mark.parametrize("name", ["qwen3moe", "granitemoe", "glm4"])
def test_codes_of_folders_of_mlx_lm(tmp_path: Path, name: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    dense: dict[str, tuple[str, np.ndarray]] = {}
    for key, value in mlx_weights(name).items():
        if value.ndim < 2 or value.shape[-1] % 32 or not key.endswith(".weight"):
            tensors[key] = dense[key] = ("F16", value)
            continue
        words, scales, biases = mx.quantize(mx.array(value), group_size=32, bits=4)
        stem = key.removesuffix(".weight")
        tensors |= {key: ("U32", np.array(words)), f"{stem}.scales": ("F16", np.array(scales))}
        tensors[f"{stem}.biases"] = ("F16", np.array(biases))
        wide = [one.astype(mx.float32) for one in (scales, biases)]
        dense[key] = ("F32", np.array(mx.dequantize(words, *wide, group_size=32, bits=4)))
    quantised = config_of(name) | {"quantization": {"group_size": 32, "bits": 4}}
    source = open_source(write_huggingface(tmp_path / "m", quantised, tensors))
    plain = open_source(write_huggingface(tmp_path / "plain", config_of(name), dense))
    assert set(source.types.values()) == {"affine4-g32"}
    for matrix in source.types:
        np.testing.assert_array_equal(source.matrix(matrix), plain.matrix(matrix))
        table = source.quantised(matrix, "affine4-g32")
        rows = to_float32(plain.matrix(matrix), plain.dtype)
        np.testing.assert_allclose(table.rows(np.arange(len(rows))), rows, rtol=2**-10, atol=1e-6)
