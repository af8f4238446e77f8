"""Reading model files that are as they should be: every weight arrives bit for bit, under its own name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize
from gguf import quantize as gguf_quantize
from model_files import DATA, TINY, gguf_parts, tiny_config, tiny_weights, write_gguf, write_huggingface
from models import real_model_path

from specdec.errors import InvalidArgumentError
from specdec.formats import open_source, weights
from specdec.formats.gguf_file import GGUFFile
from specdec.model.architecture import ModelConfig
from specdec.weights.dtypes import to_float32

HF_NAMES = {
    "layers.1.attn.q": "model.layers.1.self_attn.q_proj.weight",
    "layers.1.attn.k": "model.layers.1.self_attn.k_proj.weight",
    "layers.1.attn.v": "model.layers.1.self_attn.v_proj.weight",
    "layers.1.attn.o": "model.layers.1.self_attn.o_proj.weight",
    "layers.1.mlp.gate": "model.layers.1.mlp.gate_proj.weight",
    "layers.1.mlp.up": "model.layers.1.mlp.up_proj.weight",
    "layers.1.mlp.down": "model.layers.1.mlp.down_proj.weight",
    "layers.2.mlp.router": "model.layers.2.block_sparse_moe.gate.weight",
    "layers.2.mlp.experts.5.gate": "model.layers.2.block_sparse_moe.experts.5.w1.weight",
    "layers.2.mlp.experts.5.up": "model.layers.2.block_sparse_moe.experts.5.w3.weight",
    "layers.2.mlp.experts.5.down": "model.layers.2.block_sparse_moe.experts.5.w2.weight",
}
HF_VECTORS = {
    "layers.1.attn_norm": "model.layers.1.input_layernorm.weight",
    "layers.1.mlp_norm": "model.layers.1.post_attention_layernorm.weight",
    "layers.1.attn.q.bias": "model.layers.1.self_attn.q_proj.bias",
    "layers.1.attn.k.bias": "model.layers.1.self_attn.k_proj.bias",
    "layers.1.attn.v.bias": "model.layers.1.self_attn.v_proj.bias",
    "layers.1.attn.q_norm": "model.layers.1.self_attn.q_norm.weight",
    "layers.1.attn.k_norm": "model.layers.1.self_attn.k_norm.weight",
    "final_norm": "model.norm.weight",
}


def two_dimensional(config: ModelConfig) -> list[str]:
    return [*config.matrices(), *config.tables()]


def assert_same_weights(ours: Path, theirs: Path) -> None:
    a, b = open_source(ours), open_source(theirs)
    assert a.dtype == b.dtype
    for name in two_dimensional(b.config):
        np.testing.assert_array_equal(a.matrix(name), b.matrix(name), err_msg=name)
    for name in b.config.vectors():
        np.testing.assert_array_equal(a.vector(name), b.vector(name), err_msg=name)


@pytest.mark.parametrize("name", TINY)
def test_huggingface_folder(name: str) -> None:
    source, tensors = open_source(DATA / name), tiny_weights(name)
    config = source.config
    assert config.family == tiny_config(name)["model_type"]
    assert source.dtype == "float16"
    assert source.tokenizer_files == {}
    seen = 0
    for ours, theirs in HF_NAMES.items():
        if ours in config.matrices() | config.tables():
            np.testing.assert_array_equal(source.matrix(ours), tensors[theirs].view(np.uint16))
            seen += 1
    assert seen == (8 if config.num_experts else 7)
    for ours, theirs in HF_VECTORS.items():
        assert (ours in config.vectors()) == (theirs in tensors)
        if theirs in tensors:
            np.testing.assert_array_equal(source.vector(ours), tensors[theirs].astype(np.float32))
    embed = tensors["model.embed_tokens.weight"].view(np.uint16)
    assert config.tie_embeddings == ("lm_head.weight" not in tensors)
    if config.tie_embeddings:
        np.testing.assert_array_equal(source.matrix("head"), embed)
    else:
        np.testing.assert_array_equal(source.matrix("embed"), embed)
        np.testing.assert_array_equal(source.matrix("head"), tensors["lm_head.weight"].view(np.uint16))
    assert sum(np.prod(shape) for shape in (config.matrices() | config.tables()).values()) + sum(
        config.vectors().values()
    ) == sum(array.size for array in tensors.values())


def test_unknown_names_are_refused() -> None:
    source = open_source(DATA / "tiny-llama")
    with pytest.raises(InvalidArgumentError, match=r"no matrix or table 'layers.9.attn.q'"):
        source.matrix("layers.9.attn.q")
    with pytest.raises(InvalidArgumentError, match="no vector 'embed'"):
        source.vector("embed")
    with pytest.raises(InvalidArgumentError, match="float8"):
        open_source(DATA / "tiny-llama", dtype="float8")


def windows(config: ModelConfig) -> list[int | None]:
    return [config.window(layer) for layer in range(config.num_layers)]


def test_config_of_the_tiny_models() -> None:
    assert windows(open_source(DATA / "tiny-mistral").config) == [16, 16, 16]
    qwen3 = open_source(DATA / "tiny-qwen3").config
    assert (qwen3.qk_norm, qwen3.qkv_bias, qwen3.head_dim) == (True, False, 32)
    assert windows(qwen3) == [None, None, None]
    qwen2 = open_source(DATA / "tiny-qwen2").config
    assert (qwen2.qkv_bias, qwen2.tie_embeddings, qwen2.head_dim) == (True, True, 16)
    assert qwen2.rope_theta == 1e6
    mixtral = open_source(DATA / "tiny-mixtral").config
    assert (mixtral.num_experts, mixtral.experts_per_token, windows(mixtral)) == (8, 2, [None, None, None])


def test_llama3_scaling_follows_its_definition() -> None:
    factors = open_source(DATA / "tiny-llama-rope-scaling").config.rope_factors
    assert factors is not None
    for j, divisor in enumerate(factors):
        frequency = 500000.0 ** (-2 * j / 16)
        wavelength = 2 * math.pi / frequency
        if wavelength < 64 / 4.0:
            expected = frequency
        elif wavelength > 64 / 1.0:
            expected = frequency / 8.0
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            expected = (1 - smooth) * frequency / 8.0 + smooth * frequency
        # Both sides are a handful of float64 operations.
        assert frequency / divisor == pytest.approx(expected, rel=1e-14)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert any(1.0 < x < 8.0 for x in factors)


def test_old_and_new_keys_mean_the_same(tmp_path: Path) -> None:
    config = tiny_config("tiny-llama-rope-scaling")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    tensors = {key: ("F16", value) for key, value in tiny_weights("tiny-llama-rope-scaling").items()}
    folder = write_huggingface(tmp_path / "old", config, tensors)
    assert open_source(folder).config == open_source(DATA / "tiny-llama-rope-scaling").config
    config["rope_scaling"] = {"type": "linear", "factor": 4.0}
    folder = write_huggingface(tmp_path / "linear", config, tensors)
    assert open_source(folder).config.rope_factors == (4.0,) * 8
    config["rope_scaling"] = None
    assert open_source(write_huggingface(tmp_path / "none", config, tensors)).config.rope_factors is None


@pytest.mark.parametrize(
    ("changes", "window", "first"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}, 8, 1),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3, "layer_types": None}, None, 0),
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0, "layer_types": None}, None, 0),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            },
            8,
            2,
        ),
    ],
)
def test_sliding_window_of_qwen2(tmp_path: Path, changes: dict, window: int | None, first: int) -> None:
    tensors = {key: ("F16", value) for key, value in tiny_weights("tiny-qwen2").items()}
    folder = write_huggingface(tmp_path / "m", tiny_config("tiny-qwen2") | changes, tensors)
    config = open_source(folder).config
    assert windows(config) == [None] * first + [window] * (3 - first)


def test_mistral_without_the_key_has_the_default_window(tmp_path: Path) -> None:
    config = tiny_config("tiny-mistral")
    del config["sliding_window"]
    tensors = {key: ("F16", value) for key, value in tiny_weights("tiny-mistral").items()}
    assert windows(open_source(write_huggingface(tmp_path / "m", config, tensors)).config) == [4096] * 3


def test_fused_experts(tmp_path: Path) -> None:
    old, new = tiny_weights("tiny-mixtral"), {}
    for key, value in old.items():
        if ".experts." not in key:
            new[key.replace("block_sparse_moe", "mlp")] = ("F16", value)
    for layer in range(3):
        experts = f"model.layers.{layer}.block_sparse_moe.experts"
        gate, up, down = (np.stack([old[f"{experts}.{e}.{w}.weight"] for e in range(8)]) for w in ("w1", "w3", "w2"))
        new[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = ("F16", np.concatenate([gate, up], axis=1))
        new[f"model.layers.{layer}.mlp.experts.down_proj"] = ("F16", down)
    folder = write_huggingface(tmp_path / "fused", tiny_config("tiny-mixtral"), new)
    assert_same_weights(folder, DATA / "tiny-mixtral")


def test_several_files_with_an_index(tmp_path: Path) -> None:
    tensors = [(key, ("F16", value)) for key, value in tiny_weights("tiny-llama").items()]
    parts = {"model-1.safetensors": dict(tensors[:12]), "model-2.safetensors": dict(tensors[12:])}
    for name, part in parts.items():
        write_huggingface(tmp_path / "m", tiny_config("tiny-llama"), part, name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_weights(tmp_path / "m", DATA / "tiny-llama")


def test_repeated_head_of_a_tied_model(tmp_path: Path) -> None:
    tensors = {key: ("F16", value) for key, value in tiny_weights("tiny-qwen2").items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder = write_huggingface(tmp_path / "m", tiny_config("tiny-qwen2"), tensors)
    assert_same_weights(folder, DATA / "tiny-qwen2")


def test_float32_and_bfloat16_checkpoints(tmp_path: Path) -> None:
    single = {
        key: value.astype(np.float32) * np.float32(1 + 2**-15) for key, value in tiny_weights("tiny-llama").items()
    }
    folder = write_huggingface(
        tmp_path / "f32", tiny_config("tiny-llama"), {key: ("F32", value) for key, value in single.items()}
    )
    source, values = open_source(folder), single["model.layers.0.mlp.up_proj.weight"]
    assert source.dtype == "float16"
    np.testing.assert_array_equal(source.matrix("layers.0.mlp.up"), values.astype(np.float16).view(np.uint16))
    brain = open_source(folder, dtype="bfloat16").matrix("layers.0.mlp.up")
    # bfloat16 keeps 8 significant bits: half a unit in the last place is at most 2^-8 of the value.
    np.testing.assert_allclose(to_float32(brain, "bfloat16"), values, rtol=2**-8)
    upper = {key: (value.view(np.uint32) >> 16).astype(np.uint16) for key, value in single.items()}
    folder = write_huggingface(
        tmp_path / "bf16", tiny_config("tiny-llama"), {key: ("BF16", value) for key, value in upper.items()}
    )
    source = open_source(folder)
    assert source.dtype == "bfloat16"
    np.testing.assert_array_equal(source.matrix("embed"), upper["model.embed_tokens.weight"])
    norm = (upper["model.norm.weight"].astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(source.vector("final_norm"), norm)
    np.testing.assert_array_equal(
        to_float32(open_source(folder, dtype="float16").matrix("embed"), "float16"),
        to_float32(upper["model.embed_tokens.weight"], "bfloat16").astype(np.float16).astype(np.float32),
    )


def with_factors(config: ModelConfig, factors: tuple[float, ...]) -> ModelConfig:
    """The same model with other rotary divisors in every layer."""
    [layer] = config.kinds
    rope = dataclasses.replace(layer.attention.rope, factors=factors)
    layer = dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, rope=rope))
    return dataclasses.replace(config, layers=(layer,) * config.num_layers)


@pytest.mark.parametrize(("name", "merged"), [*((name, False) for name in TINY), ("tiny-mixtral", True)])
@pytest.mark.parametrize("block_values", [1 << 21, 64 * 7])
def test_gguf_equals_its_checkpoint(
    tmp_path: Path, name: str, merged: bool, block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BLOCK_VALUES", block_values)
    metadata, tensors = gguf_parts(name, merged=merged)
    expected = open_source(DATA / name).config
    if expected.rope_factors is not None:
        tensors["rope_freqs.weight"] = np.array(expected.rope_factors, dtype=np.float32)
        stored = tuple(float(x) for x in tensors["rope_freqs.weight"])
        expected = with_factors(expected, stored)
    if expected.family == "mistral":
        expected = dataclasses.replace(expected, family="llama")
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert open_source(path).config == expected
    assert_same_weights(path, DATA / name)


def test_gguf_linear_scaling_and_per_layer_numbers(tmp_path: Path) -> None:
    metadata, tensors = gguf_parts("tiny-llama")
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    scaling["llama.attention.head_count_kv"] = [2, 2, 2]
    config = open_source(write_gguf(tmp_path / "m.gguf", metadata | scaling, tensors)).config
    assert config.rope_factors == (2.0,) * 8
    assert config.num_kv_heads == 2


def test_quantised_and_bfloat16_gguf(tmp_path: Path) -> None:
    metadata, tensors = gguf_parts("tiny-qwen2")
    kinds = [GGMLQuantizationType[name] for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F32", "BF16")]
    written, decoded = dict(tensors), {}
    for kind, name in zip(kinds, [name for name in tensors if "ffn_gate" in name or "ffn_up" in name], strict=False):
        packed = gguf_quantize(tensors[name].astype(np.float32), kind)
        written[name], decoded[name] = (packed, kind), dequantize(packed, kind)
    source = open_source(write_gguf(tmp_path / "m.gguf", metadata, written))
    assert source.dtype == "float16"
    for name, values in decoded.items():
        _, layer, kind, _ = name.split(".")
        bits = source.matrix(f"layers.{layer}.mlp.{kind.removeprefix('ffn_')}")
        np.testing.assert_array_equal(bits, values.astype(np.float16).view(np.uint16), err_msg=name)
    packed = {n: (gguf_quantize(t.astype(np.float32), GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
              for n, t in tensors.items() if t.ndim > 1}  # fmt: skip
    source = open_source(write_gguf(tmp_path / "b.gguf", metadata, tensors | packed))
    assert source.dtype == "bfloat16"
    np.testing.assert_array_equal(source.matrix("head"), packed["token_embd.weight"][0].view(np.uint16))


def test_every_type_that_gguf_decodes(tmp_path: Path) -> None:
    """Header, tensor table and rows agree with the gguf package's own reader, for random blocks of every type."""
    generator, tensors = np.random.default_rng(0), {}
    metadata = {"general.architecture": "llama", "a.text": "naïve 東京", "a.flag": True, "a.list": [1.5, 2.5],
                "a.words": ["x", ""], "a.number": 7, "general.alignment": 64}  # fmt: skip
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        tensors[kind.name] = (generator.integers(0, 256, (7, 3 * size), dtype=np.uint8), kind)
    assert {"F32", "F16", "BF16", "Q4_1", "Q4_K", "Q5_0", "Q6_K", "Q8_0"} <= set(tensors)
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    ours, theirs = GGUFFile(path), GGUFReader(path)
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value
    assert set(ours.names()) == {tensor.name for tensor in theirs.tensors}
    with np.errstate(all="ignore"):  # random bits are NaN and infinity too
        for tensor in theirs.tensors:
            whole = dequantize(tensor.data, tensor.tensor_type)
            assert ours.shape(tensor.name) == whole.shape
            np.testing.assert_array_equal(ours.float32(tensor.name, 2, 6), whole[2:6], err_msg=tensor.name)
            np.testing.assert_array_equal(ours.float32(tensor.name, 0, 7), whole, err_msg=tensor.name)


@pytest.mark.model
@pytest.mark.parametrize(("name", "tied", "layers"), [("smollm2-135m", True, 30), ("qwen2.5-coder-0.5b", False, 24)])
def test_real_models(name: str, tied: bool, layers: int) -> None:
    source = open_source(real_model_path(name))
    assert (source.config.tie_embeddings, source.config.num_layers) == (tied, layers)
    assert source.dtype == "float16"
    file = GGUFFile(real_model_path(name))
    for ours, theirs in {
        "layers.3.mlp.down": "blk.3.ffn_down.weight",
        "layers.23.attn.v": "blk.23.attn_v.weight",
    }.items():
        rows = file.shape(theirs)[0]
        expected = file.float32(theirs, 0, rows).astype(np.float16).view(np.uint16)
        np.testing.assert_array_equal(source.matrix(ours), expected)
