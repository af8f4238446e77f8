"""Writes small model files in other projects' formats, with those projects' own writers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from places import DATA
from safetensors.numpy import load_file

TINY = tuple(sorted(path.name for path in DATA.glob("tiny-*")))
_BLOCK_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "block_sparse_moe.gate": "ffn_gate_inp",
}  # fmt: skip
_EXPERT_NAMES = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
_OUTER_NAMES = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}


def tiny_config(name: str) -> dict[str, Any]:
    """config.json of a tiny checkpoint."""
    return json.loads((DATA / name / "config.json").read_text())


def tiny_weights(name: str) -> dict[str, np.ndarray]:
    """float16 tensors of a tiny checkpoint, under their Hugging Face names."""
    return load_file(DATA / name / "model.safetensors")


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | tuple[np.ndarray, GGMLQuantizationType]],
) -> Path:
    """A GGUF file; the value of a metadata key decides its type, a tensor may be raw bytes with a type."""
    writer = GGUFWriter(path, str(metadata["general.architecture"]))
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if key == "general.alignment":
            writer.add_custom_alignment(value)
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            adders[type(value)](key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_parts(name: str, *, merged: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of a tiny checkpoint as a GGUF converter would write them; `merged` stacks experts."""
    config, weights = tiny_config(name), tiny_weights(name)
    family = config["model_type"] if config["model_type"] in ("qwen2", "qwen3") else "llama"
    heads, head_dim = config["num_attention_heads"], config.get("head_dim") or 16
    metadata: dict[str, Any] = {
        "general.architecture": family,
        f"{family}.block_count": config["num_hidden_layers"],
        f"{family}.context_length": config["max_position_embeddings"],
        f"{family}.embedding_length": config["hidden_size"],
        f"{family}.feed_forward_length": config["intermediate_size"],
        f"{family}.attention.head_count": heads,
        f"{family}.attention.head_count_kv": config["num_key_value_heads"],
        f"{family}.attention.key_length": head_dim,
        f"{family}.attention.value_length": head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{family}.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        f"{family}.rope.dimension_count": head_dim,
    }
    if config.get("sliding_window"):
        metadata[f"{family}.attention.sliding_window"] = config["sliding_window"]
    if "num_local_experts" in config:
        metadata[f"{family}.expert_count"] = config["num_local_experts"]
        metadata[f"{family}.expert_used_count"] = config["num_experts_per_tok"]
    tensors = {}
    for key, value in weights.items():
        new = _gguf_name(key)
        if family == "llama" and (".attn_q." in new or ".attn_k." in new):
            value = interleave(value, value.shape[0] // head_dim)
        tensors[new] = value.astype(np.float32) if value.ndim == 1 else value
    return metadata, _stack_experts(tensors, config["num_local_experts"]) if merged else tensors


def write_huggingface(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, np.ndarray]],
    name: str = "model.safetensors",
) -> Path:
    """A checkpoint folder; a tensor is (safetensors type, array of the raw values, uint16 for bfloat16)."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content, offset = [], 0
    for key, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[key] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(raw)]}
        content.append(raw)
        offset += len(raw)
    (folder / name).write_bytes(safetensors_bytes(header, b"".join(content)))
    return folder


def safetensors_bytes(header: Any, content: bytes) -> bytes:
    """A safetensors file with this header, right or wrong."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content


def _gguf_name(key: str) -> str:
    stem, kind = key.rsplit(".", 1)
    if stem in _OUTER_NAMES:
        return f"{_OUTER_NAMES[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    if ".experts." in rest:
        _, _, expert, projection = rest.split(".")
        return f"blk.{layer}.{_EXPERT_NAMES[projection]}.{expert}.{kind}"
    return f"blk.{layer}.{_BLOCK_NAMES[rest]}.{kind}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """In the Llama family's GGUF files row 2j of a head is row j of Hugging Face's, row 2j + 1 is row j + D/2."""
    out = np.empty_like(rows)
    size = rows.shape[0] // heads
    for head in range(heads):
        for j in range(size // 2):
            out[head * size + 2 * j] = rows[head * size + j]
            out[head * size + 2 * j + 1] = rows[head * size + j + size // 2]
    return out


def _stack_experts(tensors: dict[str, np.ndarray], experts: int) -> dict[str, np.ndarray]:
    stacked = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if len(parts) != 5:
            stacked[name] = value
        elif parts[3] == "0":
            each = [tensors[".".join([*parts[:3], str(e), parts[4]])] for e in range(experts)]
            stacked[f"{parts[0]}.{parts[1]}.{parts[2]}_exps.{parts[4]}"] = np.stack(each)
    return stacked
