"""Model families: every one gives the same description from each kind of source, and unknown ones are refused."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from model_files import gguf_parts, tiny_weights, write_gguf, write_huggingface
from model_files import tiny_config as tiny_fields
from places import DATA, ROOT

from specdec.errors import ModelFormatError
from specdec.families import registry
from specdec.families.base import Stored, changed, find
from specdec.families.fields import Fields
from specdec.formats import open_source
from specdec.model.architecture import ModelConfig

COMMON: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 16, "norm_eps": 1e-6, "rope_theta": 1e4, "max_context": 512,
}  # fmt: skip
# What the readers of version 0.2 made of the checkpoints, where it differs from COMMON.
EXPECTED: dict[str, dict[str, Any]] = {
    "tiny-llama": {"architecture": "llama"},
    "tiny-llama-rope-scaling": {
        "architecture": "llama", "rope_theta": 5e5, "tie_embeddings": True,
        "rope_factors": (1.0, 2.442259389830086, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0),
    },
    "tiny-mistral": {"architecture": "mistral", "sliding_window": 16},
    "tiny-mixtral": {
        "architecture": "mixtral", "norm_eps": 1e-5, "rope_theta": 1e6, "num_experts": 8, "experts_per_token": 2,
    },
    "tiny-qwen2": {"architecture": "qwen2", "rope_theta": 1e6, "tie_embeddings": True, "qkv_bias": True},
    "tiny-qwen3": {
        "architecture": "qwen3", "rope_theta": 1e6, "tie_embeddings": True, "qk_norm": True, "head_dim": 32,
    },
}  # fmt: skip
# Matrices of one layer, in order; the logits layer follows the last.
ATTENTION = ["attn.q", "attn.k", "attn.v", "attn.o"]
DENSE = ["mlp.gate", "mlp.up", "mlp.down"]
MIXTURE = [f"mlp.experts.{expert}.{name}" for expert in range(8) for name in ("gate", "up", "down")]
NORMS = ["attn_norm", "mlp_norm"]
VECTORS = {
    "tiny-qwen2": [*NORMS, "attn.q.bias", "attn.k.bias", "attn.v.bias"],
    "tiny-qwen3": [*NORMS, "attn.q_norm", "attn.k_norm"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_descriptions_from_both_kinds_of_source(tmp_path: Path, name: str) -> None:
    expected = COMMON | EXPECTED[name]
    assert open_source(DATA / name).config == ModelConfig.from_flat_dict(expected)
    metadata, tensors = gguf_parts(name)  # these have no rotary divisors, and call Mistral a Llama
    expected |= {"rope_factors": None} | ({"architecture": "llama"} if name == "tiny-mistral" else {})
    assert open_source(write_gguf(tmp_path / "m.gguf", metadata, tensors)).config == ModelConfig.from_flat_dict(
        expected
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_names_and_order_of_tensors_are_those_of_old_stores(name: str) -> None:
    config = open_source(DATA / name).config
    matrices = [*ATTENTION, *(MIXTURE if name == "tiny-mixtral" else DENSE)]
    layers = range(3)
    assert list(config.matrices()) == [*(f"layers.{i}.{kind}" for i in layers for kind in matrices), "head"]
    tables = [] if EXPECTED[name].get("tie_embeddings") else ["embed"]
    tables += [f"layers.{i}.mlp.router" for i in layers] if name == "tiny-mixtral" else []
    assert list(config.tables()) == tables
    vectors = VECTORS.get(name, NORMS)
    assert list(config.vectors()) == [*(f"layers.{i}.{kind}" for i in layers for kind in vectors), "final_norm"]
    head_dim = config.head_dim
    assert config.matrices()["layers.2.attn.q"] == (4 * head_dim, 64)
    assert config.matrices()["layers.2.attn.k"] == config.matrices()["layers.2.attn.v"] == (2 * head_dim, 64)
    assert config.matrices()["layers.2.attn.o"] == (64, 4 * head_dim)
    assert config.matrices()[f"layers.2.{matrices[-1]}"] == (64, 160)
    assert config.matrices()["head"] == (320, 64)


def test_the_families_that_are_read() -> None:
    assert list(registry.families()) == [
        "gemma2", "gemma3", "glm", "glm4", "gpt_oss", "granite", "granitemoe", "llama", "mistral", "mixtral", "olmo2",
        "olmo3", "olmoe", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
    ]  # fmt: skip
    with pytest.raises(ModelFormatError, match=r"unknown architecture 'gpt_neox': this version reads gemma2, gemma3, "):
        registry.from_huggingface(Fields({"model_type": "gpt_neox"}, "config.json"))
    with pytest.raises(ModelFormatError, match=r"unknown architecture 'falcon': GGUF is read for chatglm, gemma2, "):
        registry.gguf_family(Fields({"general.architecture": "falcon"}, "m.gguf"))


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("bert", "an encoder"),
        ("t5", "an encoder beside the decoder"),
        ("mamba2", "state-space layers (Mamba)"),
        ("granitemoehybrid", "state-space layers (Mamba)"),
        ("qwen3_next", "linear attention (DeltaNet)"),
        ("rwkv7", "recurrent layers (RWKV)"),
        ("siglip", "an encoder of images"),
    ],
)
def test_other_kinds_of_models_are_refused_by_what_is_missing(name: str, needs: str) -> None:
    sentence = re.escape(f"{name!r} needs {needs}, which is not supported: ")
    with pytest.raises(ModelFormatError, match=sentence + "this version reads gemma2, "):
        registry.from_huggingface(Fields({"model_type": name}, "config.json"))
    with pytest.raises(ModelFormatError, match=sentence + "GGUF is read for "):
        registry.gguf_family(Fields({"general.architecture": name}, "m.gguf"))


def test_a_new_family_is_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama under another name, with other names of tensors."""
    llama = registry.families()["llama"]
    places = changed(llama.huggingface or {}, lambda one: Stored(one.tensor.replace("self_attn", "attention")))
    module = ModuleType("specdec.families.tiny")
    module.FAMILY = dataclasses.replace(llama, name="tiny", huggingface=places, gguf_name=None)  # type: ignore[attr-defined]
    found = [type("Found", (), {"name": name}) for name in ("llama", "tiny", "rope")]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "iter_modules", lambda _: found)
    registry.families.cache_clear()
    try:
        assert list(registry.families()) == ["llama", "tiny"]
        tensors = {
            key.replace("self_attn", "attention"): ("F16", value) for key, value in tiny_weights("tiny-llama").items()
        }
        fields = tiny_fields("tiny-llama") | {"model_type": "tiny", "architectures": ["TinyForCausalLM"]}
        source = open_source(write_huggingface(tmp_path / "m", fields, tensors))
        assert source.config.family == "tiny"
        np.testing.assert_array_equal(
            source.matrix("layers.1.attn.q"), open_source(DATA / "tiny-llama").matrix("layers.1.attn.q")
        )
    finally:
        registry.families.cache_clear()


def test_places_of_tensors() -> None:
    places = registry.families()["mixtral"].huggingface or {}
    name, base = "layers.2.mlp.experts.5.up", "model.layers.2.mlp.experts.gate_up_proj"
    place, tensor = find(places, name, [base])
    assert (tensor, place.among) == (base, ("mlp.experts.gate", "mlp.experts.up"))
    assert find(places, name, [])[1] == "model.layers.2.block_sparse_moe.experts.5.w3.weight"
    with pytest.raises(ModelFormatError, match=r"no tensor of the source is known for 'layers\.2\.attn\.sinks'"):
        find(places, "layers.2.attn.sinks", [])


def test_the_guide_shows_a_real_family_in_under_60_lines() -> None:
    root = ROOT
    if not (root / "CONTRIBUTING.md").exists():
        pytest.skip("needs the source tree")
    blocks = re.findall(r"^```python\n(.*?)^```", (root / "CONTRIBUTING.md").read_text(), re.M | re.S)
    shown = next(block for block in blocks if "FAMILY" in block)
    assert shown == (root / "specdec" / "families" / "olmo2.py").read_text()
    assert shown.count("\n") + 3 < 60


def test_the_page_of_families_lists_every_one() -> None:
    page = ROOT / "docs" / "families.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    rows = [line.split("|")[2:4] for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    kinds, architectures = ({name for row in rows for name in re.findall(r"`([\w-]+)`", row[n])} for n in (0, 1))
    families = registry.families().values()
    assert {kind for family in families for kind in family.model_types or (family.name,)} <= kinds
    assert {family.gguf_name for family in families if family.gguf_name} <= architectures
