"""Model files that lack what others have, or have more: read as transformers, mlx-lm or llama.cpp read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import DATA, gguf_parts, tiny_config, tiny_weights, write_gguf, write_huggingface
from test_sources import assert_same_weights

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.families.registry import from_huggingface
from specdec.formats import open_source
from specdec.model_files import folder_files

# What the model classes of transformers 5.24 take for a model of 64 heads of a hidden size of 4096.
CLASSES: dict[str, tuple[int, int, int, float, float]] = {  # context, key-value heads, head size, epsilon, theta
    "llama": (2048, 64, 64, 1e-6, 1e4),
    "mistral": (131_072, 8, 64, 1e-6, 1e4),
    "mixtral": (131_072, 8, 64, 1e-5, 1e6),
    "qwen2": (32_768, 32, 64, 1e-6, 1e4),
    "qwen3": (32_768, 32, 128, 1e-6, 1e4),
}


@pytest.mark.parametrize("family", CLASSES)
def test_a_config_that_leaves_out_what_its_class_knows(family: str) -> None:
    stated: dict[str, Any] = {"model_type": family, "hidden_size": 4096, "num_attention_heads": 64, "vocab_size": 9}
    config = from_huggingface(Fields(stated | {"num_hidden_layers": 1, "intermediate_size": 8}, "config.json"))
    found = config.max_context, config.num_kv_heads, config.head_dim, config.norm_eps, config.rope_theta
    assert found == CLASSES[family]
    assert (config.num_experts, config.experts_per_token) == ((8, 2) if family == "mixtral" else (0, 0))


def shards(folder: Path, *names: str) -> Path:
    tensors = [(key, ("F16", value)) for key, value in tiny_weights("tiny-llama").items()]
    for number, name in enumerate(names):
        write_huggingface(folder, tiny_config("tiny-llama"), dict(tensors[number :: len(names)]), name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ("model.a.safetensors", "model.b.safetensors"),
        ("weights.00.safetensors", "weights.01.safetensors"),
        ("weights.safetensors",),
    ],
)
def test_weights_that_no_index_lists(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = shards(tmp_path / "m", *names)
    (folder / "consolidated.safetensors").write_bytes(b"of another program")
    assert_same_weights(folder, DATA / "tiny-llama")
    # A store is made again when one of them changes, and not for the other program's.
    read = {path.name for path in folder_files(folder)}
    assert set(names) < read
    assert "consolidated.safetensors" not in read


def test_a_part_without_an_index_that_is_missing(tmp_path: Path) -> None:
    folder = shards(tmp_path / "m", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ModelFormatError, match=r"and model-00002-of-00002\.safetensors is missing from its folder: download all"
    ):
        open_source(folder)


def test_one_file_counts_more_than_an_index(tmp_path: Path) -> None:
    tensors = {key: ("F16", value) for key, value in tiny_weights("tiny-llama").items()}
    folder = write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), tensors)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')
    assert_same_weights(folder, DATA / "tiny-llama")
    assert "model.safetensors.index.json" not in {path.name for path in folder_files(folder)}


def test_frequencies_that_older_checkpoints_keep(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {key: ("F16", value) for key, value in tiny_weights("tiny-llama").items()}
    for place in ("model.rotary_emb", "model.layers.0.self_attn.rotary_emb"):
        tensors[f"{place}.inv_freq"] = ("F32", np.ones(8, np.float32))
    assert_same_weights(write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), tensors), DATA / "tiny-llama")


@pytest.mark.parametrize("name", [3, ["a", "b"], True])
def test_a_gguf_name_that_is_no_text(tmp_path: Path, name: Any) -> None:
    metadata, tensors = gguf_parts("tiny-llama")
    source = open_source(write_gguf(tmp_path / "m.gguf", metadata | {"general.name": name}, tensors))
    assert source.description["name"] == ""
