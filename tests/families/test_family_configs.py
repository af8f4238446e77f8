"""config.json and GGUF metadata of every family with wrong or hostile values: one clear error, never another."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family_files import FAMILIES, FOLDER, config_of, write_family_gguf
from test_family_logits import GGUF

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.registry import from_gguf, from_huggingface
from specdec.formats.files import read_json
from specdec.formats.gguf_file import GGUFFile
from specdec.model.architecture import ModelConfig
from specdec.model.bounds import check_bounds

WRONG: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**30, 0.5, -2.0, 1e-320, 1e300, math.nan, math.inf, "", "x", [], [1], ["x"], [None] * 3,
    [-1, 0, 2], {}, {"x": 1}, {"rope_type": "yarn", "factor": -1}, {"full_attention": 3},
)  # fmt: skip


def checked(config: ModelConfig) -> ModelConfig:
    """As opening a file checks it; names of tensors are made, too."""
    check_bounds(config)
    assert config.matrices()
    assert config.vectors()
    return ModelConfig.from_dict(config.to_dict())


def tried(read: Callable[[dict[str, Any]], ModelConfig], values: dict[str, Any], key: str, wrong: Any) -> None:
    """A changed description is read or refused in one sentence; any other exception fails the test."""
    message = ""
    try:
        checked(read(values | {key: wrong}))
    except ModelFormatError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("name", FAMILIES)
def test_any_value_of_a_config_may_be_wrong(name: str) -> None:
    def read(values: dict[str, Any]) -> ModelConfig:
        return from_huggingface(Fields(values, "config.json"))

    config = read_json(FOLDER / name / "config.json")
    checked(read(config))
    for key in config:
        for wrong in WRONG:
            tried(read, config, key, wrong)
    text = config.get("text_config", {})
    for key in text:
        for wrong in WRONG:
            tried(read, config, "text_config", text | {key: wrong})
    rules = config_of(name).get("rope_parameters", {})
    for key in rules if "text_config" not in config else ():
        for wrong in WRONG:
            tried(read, config, "rope_parameters", rules | {key: wrong})


@pytest.mark.parametrize("name", GGUF)
def test_any_value_of_metadata_may_be_wrong(tmp_path: Path, name: str) -> None:
    file = GGUFFile(write_family_gguf(tmp_path / "m.gguf", name))
    tied = "output.weight" not in file.names()

    def read(values: dict[str, Any]) -> ModelConfig:
        fields = GgufFields(values, "m.gguf", vocab=96, tied=tied, tensors=file.names(), rope_divisors={})
        return from_gguf(fields)

    if "longrope" not in str(file.metadata) and not any("rope_factors" in one for one in file.names()):
        checked(read(file.metadata))
    for key in file.metadata:
        for wrong in WRONG:
            tried(read, dict(file.metadata), key, wrong)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemma3", {"use_bidirectional_attention": True}, "attention in both directions (an encoder) is not supported"),
        ("gemma3", {"sliding_window_pattern": 0, "layer_types": None}, "sliding_window_pattern must be a positive"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation must be 'gelu_pytorch_tanh', not 'gelu'"),
        ("glm4", {"partial_rotary_factor": 0.2, "rope_parameters": {}}, "must turn an even part of the head of 16"),
        ("glm4", {"mlp_bias": True}, "mlp_bias is not supported for glm4"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is not supported, only null"),
        ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit must be 7.0, other values are not supported"),
        ("qwen3moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be a positive whole number"),
        ("qwen3moe", {"num_experts_per_tok": 9}, "experts_per_token must be 1 to num_experts (6), not 9"),
        ("granite", {"logits_scaling": 0}, "logits_scaling must be a positive number, not 0"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers must hold 0 or 1 for each of 4 layers"),
        ("olmo3", {"layer_types": ["linear_attention"] * 4}, "linear_attention is not supported"),
        ("phi3", {"architectures": ["Phi3ForSequenceClassification"]}, "architectures must name Phi3ForCausalLM"),
        ("ministral3", {"num_hidden_layers": 10**9}, "said to have 1000000000 layers; at most 4096"),
    ],
)
def test_what_a_family_does_not_have(name: str, change: dict[str, Any], message: str) -> None:
    values = read_json(FOLDER / name / "config.json") | change
    with pytest.raises(ModelFormatError) as caught:
        from_huggingface(Fields(values, "config.json"))
    assert message in str(caught.value)


def test_granite_without_positions(tmp_path: Path) -> None:
    values = GGUFFile(write_family_gguf(tmp_path / "m.gguf", "granite")).metadata

    def kinds(changes: dict[str, Any]) -> set[str]:
        fields = GgufFields(values | changes, "m.gguf", vocab=96, tied=False, rope_divisors={})
        return {layer.attention.rope.kind for layer in from_gguf(fields).layers}

    assert kinds({}) == kinds({"granite.rope.scaling.finetuned": True}) == {"half"}
    assert kinds({"granite.rope.scaling.finetuned": False}) == {"none"}
