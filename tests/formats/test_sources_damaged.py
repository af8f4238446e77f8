"""Model files that cannot be read: each is refused with one sentence that names what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import DATA, gguf_parts, safetensors_bytes, tiny_config, tiny_weights, write_gguf, write_huggingface

from specdec import catalogue
from specdec.errors import ModelFormatError
from specdec.formats import Source, open_source
from specdec.model.architecture import ModelConfig

Q = "blk.0.attn_q.weight"


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def read_all(source: Source) -> None:
    for name in [*source.config.matrices(), *source.config.tables()]:
        source.matrix(name)
    for name in source.config.vectors():
        source.vector(name)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", *gguf_parts("tiny-llama")).read_bytes()


def half_tensors(name: str) -> dict[str, tuple[str, np.ndarray]]:
    return {key: ("F16", value) for key, value in tiny_weights(name).items()}


def test_paths(tmp_path: Path) -> None:
    refused(tmp_path / "no such", "there is no file or folder .*no such")
    refused(tmp_path, r"is not a Hugging Face model: it has no config\.json")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("tiny-llama")))
    refused(tmp_path, r"has no model\.safetensors and no model\.safetensors\.index\.json")
    refused(DATA / "tiny-llama" / "model.safetensors", "is only part of a model")
    (tmp_path / "store.json").write_text("{}")
    refused(tmp_path, "is a converted store already")


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 zip", b"\x00" * 64])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", "is empty" if not content else "is not a GGUF file")


@pytest.mark.parametrize("name", ["m.gguf", "model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"])
def test_pointers_of_git_lfs(tmp_path: Path, home: Path, name: str) -> None:
    model = write_huggingface(tmp_path / "model", tiny_config("tiny-llama"), half_tensors("tiny-llama"))
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n")
    path = model / name if name == "m.gguf" else model
    message = f"{name} is a pointer of Git LFS, not the file itself: run git lfs pull in its folder"
    with pytest.raises(ModelFormatError, match=message):
        catalogue.resolve_model(str(path))
    with pytest.raises(ModelFormatError, match=message), open_source(path) as source:
        source.tokenizer_files()


@pytest.mark.parametrize(("version", "message"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_gguf_versions(tmp_path: Path, gguf_bytes: bytes, version: int, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes[:4] + version.to_bytes(4, "little") + gguf_bytes[8:])
    refused(tmp_path / "m.gguf", f"is a {message} GGUF file")


def test_truncated_gguf(tmp_path: Path, gguf_bytes: bytes) -> None:
    for size in [*range(4, 2000, 37), len(gguf_bytes) // 2, len(gguf_bytes) - 1000]:
        (tmp_path / "m.gguf").write_bytes(gguf_bytes[:size])
        refused(tmp_path / "m.gguf", "truncated")


class Parts(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, Any]


def changed_gguf(folder: Path, change: Callable[[Parts], object]) -> Path:
    parts = Parts(*gguf_parts("tiny-llama"))
    change(parts)
    return write_gguf(folder / "m.gguf", *parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.tensors.pop(Q), f"lacks tensor '{Q}'"),
        (lambda p: p.tensors.pop("token_embd.weight"), "lacks tensor 'token_embd.weight'"),
        (
            lambda p: [p.tensors.pop(f"blk.{i}.ffn_up.weight") for i in range(3)],
            "lacks tensors .*ffn_up.*ffn_up.*ffn_up",
        ),
        (lambda p: p.tensors.update(extra=np.zeros(4, np.float32)), "has tensor 'extra', which this architecture"),
        (
            lambda p: p.tensors.update({"blk.0.attn_q.bias": np.zeros(64, np.float32)}),
            r"lacks tensors 'blk\.0\.attn_k\.bias'",
        ),
        (lambda p: p.tensors.update({Q: p.tensors[Q][:32]}), r"must have shape \(64, 64\), not \(32, 64\)"),
        (lambda p: p.tensors.update({Q: p.tensors[Q][None]}), r"must have shape \(64, 64\), not \(1, 64, 64\)"),
        (lambda p: p.metadata.update({"general.architecture": "falcon"}), "unknown architecture 'falcon'"),
        (lambda p: p.metadata.pop("llama.block_count"), r"llama\.block_count is missing"),
        (
            lambda p: p.metadata.update({"llama.block_count": 4_000_000_000}),
            "said to have 4000000000 layers; at most 4096",
        ),
        (lambda p: p.metadata.update({"llama.block_count": "three"}), "must be a whole number, not 'three'"),
        (lambda p: p.metadata.update({"llama.attention.head_count": 0}), "num_heads must be a positive whole number"),
        (lambda p: p.metadata.update({"llama.attention.head_count_kv": [2, 2, 4]}), "differs between layers"),
        (lambda p: p.metadata.update({"llama.rope.freq_base": float("nan")}), "must be a positive number"),
        (lambda p: p.metadata.update({"llama.context_length": 0}), "llama.context_length must be a positive .*, not 0"),
        (
            lambda p: p.metadata.update({"llama.rope.dimension_count": 8}),
            "rope.dimension_count must be the head size 16",
        ),
        (lambda p: p.metadata.update({"llama.rope.scaling.type": "ntk"}), "rotary scaling 'ntk' is not supported"),
        (lambda p: p.metadata.update({"llama.logit_scale": 8.0}), r"llama\.logit_scale must be 1\.0"),
        (lambda p: p.metadata.update({"llama.attention.scale": 0.5}), r"attention\.scale must be 1/sqrt\(16\)"),
        (
            lambda p: p.metadata.update(
                {"llama.attention.sliding_window_pattern": [True], "llama.attention.sliding_window": 8}
            ),
            "pattern must be true or false for each of 3 layers",
        ),
        (lambda p: p.metadata.update({"split.count": 2}), "is the first of 2 parts: give it its name back"),
        (lambda p: p.metadata.update({"llama.expert_count": 100_000, "llama.expert_used_count": 2}), "100000 experts"),
        (lambda p: p.tensors.update({"rope_freqs.weight": np.zeros(8, np.float32)}), "must hold positive numbers"),
        (lambda p: p.tensors.update({"rope_freqs.weight": np.ones(4, np.float32)}), r"must have shape \(8,\)"),
    ],
)
def test_gguf_that_does_not_fit(tmp_path: Path, change: Callable, message: str) -> None:
    refused(changed_gguf(tmp_path, change), message)


def test_unknown_quantisation_is_refused_by_tensor_and_type(tmp_path: Path, gguf_bytes: bytes) -> None:
    name = Q.encode()
    place = gguf_bytes.index(name) + len(name) + 4 + 2 * 8  # after the name: number of dimensions, then both
    damaged = gguf_bytes[:place] + (99).to_bytes(4, "little") + gguf_bytes[place + 4 :]
    (tmp_path / "m.gguf").write_bytes(damaged)
    refused(tmp_path / "m.gguf", rf"tensor '{re.escape(Q)}' has type 99, which gguf [\d.]+ does not decode")
    undecodable = (np.zeros((64, 64), np.uint8), GGMLQuantizationType.I8)
    refused(changed_gguf(tmp_path, lambda p: p.tensors.update({Q: undecodable})), r"has type I8 \(24\), which gguf")


def test_rows_that_are_no_whole_blocks(tmp_path: Path, gguf_bytes: bytes) -> None:
    name = Q.encode()
    place = gguf_bytes.index(name) + len(name) + 4 + 2 * 8
    kind = int(GGMLQuantizationType.Q4_K)  # blocks of 256 values; the rows have 64
    (tmp_path / "m.gguf").write_bytes(gguf_bytes[:place] + kind.to_bytes(4, "little") + gguf_bytes[place + 4 :])
    refused(tmp_path / "m.gguf", "cannot be Q4_K, which stores blocks of 256")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    tensors = half_tensors("tiny-llama")
    broken = tensors["model.layers.2.mlp.down_proj.weight"][1].copy()
    broken[5, 7] = value
    tensors["model.layers.2.mlp.down_proj.weight"] = ("F16", broken)
    norm = tiny_weights("tiny-llama")["model.norm.weight"].astype(np.float32)
    norm[3] = value
    tensors["model.norm.weight"] = ("F32", norm)
    source = open_source(write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), tensors))
    for dtype in ("float16", "bfloat16"):
        source = open_source(tmp_path / "m", dtype=dtype)
        source.matrix("layers.1.mlp.down")
        with pytest.raises(ModelFormatError, match=r"'model\.layers\.2\.mlp\.down_proj\.weight' holds NaN or infinity"):
            source.matrix("layers.2.mlp.down")
        with pytest.raises(ModelFormatError, match=r"'model\.norm\.weight' holds NaN or infinity"):
            source.vector("final_norm")


def test_values_too_large_for_float16(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        key: ("F32", value.astype(np.float32)) for key, value in tiny_weights("tiny-llama").items()
    }
    tensors["lm_head.weight"][1][0, 0] = -70000.0
    folder = write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), tensors)
    message = "'lm_head.weight' holds 70000, too large for float16; read the model as bfloat16"
    with pytest.raises(ModelFormatError, match=message):
        open_source(folder).matrix("head")
    assert open_source(folder, dtype="bfloat16").matrix("head")[0, 0] == 0xC789  # -70144, the nearest bfloat16


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tiny-llama", {"model_type": "gpt_neox"}, "unknown architecture 'gpt_neox'"),
        ("tiny-llama", {"model_type": None}, "model_type is missing"),
        ("tiny-llama", {"architectures": ["LlamaForSequenceClassification"]}, "must name LlamaForCausalLM"),
        ("tiny-llama", {"attention_bias": True}, "lacks tensors 'model.layers.0.self_attn.q_proj.bias'"),
        ("tiny-llama", {"mlp_bias": True}, "lacks tensors 'model.layers.0.mlp.gate_proj.bias'"),
        ("tiny-mistral", {"attention_bias": True}, "attention_bias is not supported for mistral"),
        ("tiny-qwen3", {"mlp_bias": True}, "mlp_bias is not supported for qwen3"),
        ("tiny-llama", {"hidden_act": "gelu"}, "hidden_act must be 'silu', not 'gelu'"),
        ("tiny-llama", {"quantization_config": {"quant_method": "gptq"}}, "weights are quantised .*gptq"),
        ("tiny-llama", {"quantization": {"bits": 4}}, "weights are quantised, says this, but none has scales"),
        ("tiny-llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ("tiny-llama", {"rope_parameters": {"rope_type": "ntk", "factor": 4.0}}, "rotary scaling 'ntk'"),
        ("tiny-llama", {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor is missing"),
        ("tiny-llama", {"rope_parameters": {"chunked_attention": {}}}, "rules for chunked_attention are not supported"),
        ("tiny-llama", {"rope_parameters": 7}, "rope_parameters must be a mapping"),
        ("tiny-llama", {"num_attention_heads": 5, "head_dim": None}, "must be a multiple of num_attention_heads 5"),
        ("tiny-llama", {"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
        ("tiny-llama", {"hidden_size": True}, "hidden_size must be a whole number, not True"),
        ("tiny-llama", {"intermediate_size": 161}, r"must have shape \(161, 64\), not \(160, 64\)"),
        ("tiny-llama", {"num_hidden_layers": 2}, "has tensors .*model.layers.2.* and 6 more, which this architecture"),
        ("tiny-llama", {"num_hidden_layers": 4}, "lacks tensors .*model.layers.3.* and 6 more"),
        ("tiny-llama", {"num_hidden_layers": 4000}, "said to have 4000 layers, but has only"),
        ("tiny-llama", {"num_hidden_layers": 10**9}, "said to have 1000000000 layers; at most 4096"),
        ("tiny-llama", {"tie_word_embeddings": True}, "ties the embeddings, but 'lm_head.weight' is there and differs"),
        ("tiny-qwen2", {"tie_word_embeddings": False}, "lacks tensor 'lm_head.weight'"),
        ("tiny-qwen2", {"layer_types": ["linear_attention"] * 3}, "layers: linear_attention is not supported"),
        ("tiny-qwen2", {"layer_types": ["full_attention"] * 2}, "layer_types must name"),
        ("tiny-qwen2", {"layer_types": ["sliding_attention"] * 3}, "there is no sliding_window"),
        ("tiny-mistral", {"sliding_window": 0}, "sliding_window must be a positive whole number, not 0"),
        ("tiny-mixtral", {"num_experts_per_tok": 9}, "experts_per_token must be 1 to num_experts"),
    ],
)
def test_huggingface_config(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    refused(write_huggingface(tmp_path / "m", tiny_config(name) | change, half_tensors(name)), message)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff", '{"a": ' * 100_000])
def test_config_that_is_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(tmp_path, r"config\.json (is not valid JSON|must hold a JSON object|is nested more than 64 deep)")


def test_damaged_safetensors(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), half_tensors("tiny-llama"))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 5, 8, 100, 5000, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(folder, "is empty|not a safetensors file|truncated")
    file.write_bytes(whole + b"\x00")
    refused(folder, "is damaged: its tensors end at byte")
    file.write_bytes(b"\xff" * 8 + whole[8:])
    refused(folder, "its header does not fit")


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12], **changes}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": 5}, "describes tensor 'x' in no valid way"),
        ({"x": {"dtype": "F16"}}, "describes tensor 'x' in no valid way"),
        (entry(shape=[2, -3]), "describes tensor 'x' in no valid way"),
        (entry(shape=[2, 3.0]), "describes tensor 'x' in no valid way"),
        (entry(shape=[2, 4]), "describes tensor 'x' in no valid way"),
        (entry(data_offsets=[12, 0]), "describes tensor 'x' in no valid way"),
        (entry(data_offsets=[0]), "describes tensor 'x' in no valid way"),
        (entry(dtype="F17"), "tensor 'x' has unknown type 'F17'"),
        (entry(dtype=["F16"]), "tensor 'x' has unknown type"),
        (entry() | {"y": entry()["x"]}, "there is a gap or an overlap before tensor 'y'"),
        (entry(data_offsets=[4, 16]), "there is a gap or an overlap before tensor 'x'"),
        (["x"], "its header does not fit"),
    ],
)
def test_safetensors_header(tmp_path: Path, header: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("tiny-llama")))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, b"\x00" * 12))
    refused(tmp_path, message)


def test_unread_tensor_type_is_named(tmp_path: Path) -> None:
    tensors = half_tensors("tiny-llama") | {"lm_head.weight": ("I16", np.zeros((320, 64), np.int16))}
    folder = write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), tensors)
    refused(folder, "tensor 'lm_head.weight' has type I16: this version reads F32, F16, BF16")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
        ({"lm_head.weight": "../model.safetensors"}, "which is not a safetensors file in the same folder"),
        ({"lm_head.weight": "model.bin"}, "which is not a safetensors file in the same folder"),
        ({"lm_head.weight": "missing.safetensors"}, "cannot read .*missing.safetensors"),
        (
            {"lm_tail.weight": "model-1.safetensors"},
            "puts tensor 'lm_tail.weight' into model-1.safetensors, which lacks it",
        ),
    ],
)
def test_index(tmp_path: Path, weight_map: Any, message: str) -> None:
    tensors = half_tensors("tiny-llama")
    folder = write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), tensors, "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, message)


def test_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        folder = write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), half_tensors("tiny-llama"), name)
    weight_map = {"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, r"is in both a\.safetensors and b\.safetensors")


def opens_or_refuses(path: Path) -> None:
    """Whatever bytes were changed: the path still describes a model, or a ModelFormatError says why not."""
    try:
        source = open_source(path)
    except ModelFormatError as error:
        message = str(error)
    else:
        assert isinstance(source.config, ModelConfig)
        message = ""
        try:
            read_all(source)
        except ModelFormatError as error:
            message = str(error)
        source.close()
    assert "\n" not in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2999), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_to_a_gguf_header(tmp_path: Path, gguf_bytes: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(gguf_bytes)
    for place, value in changes:
        damaged[place] = value
    (tmp_path / "m.gguf").write_bytes(damaged)
    opens_or_refuses(tmp_path / "m.gguf")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3400), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_to_a_safetensors_header(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray((DATA / "tiny-llama" / "model.safetensors").read_bytes())
    for place, value in changes:
        damaged[place] = value
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("tiny-llama")))
    (tmp_path / "model.safetensors").write_bytes(damaged)
    opens_or_refuses(tmp_path)
