"""Tiny checkpoints of model families as other programs store them: GGUF by llama.cpp's conventions, mlx-lm's folders.

Names of tensors in GGUF are those of the gguf package's own table; what a converter does to their values is here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from model_files import interleave, write_gguf
from places import DATA
from safetensors.numpy import load_file

FOLDER = DATA / "families"
FAMILIES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))

Weights = dict[str, np.ndarray]

_ARCHITECTURES = {
    "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3", "olmo2": "olmo2", "olmo3": "olmo2",
    "smollm3": "smollm3", "granite": "granite", "granitemoe": "granitemoe", "granitemoeshared": "granitemoe",
    "glm": "chatglm", "glm4": "glm4", "ministral": "llama", "ministral3": "mistral3", "mistral": "llama",
    "mixtral": "llama", "llama": "llama", "qwen3_moe": "qwen3moe", "olmoe": "olmoe", "gpt_oss": "gpt-oss",
}  # fmt: skip
_INTERLEAVED = ("llama", "granite", "granitemoe", "smollm3", "mistral3")
_PARTS = ("gate_proj", "up_proj", "down_proj")


def config_of(name: str) -> dict[str, Any]:
    """config.json, the text part where there are others."""
    config = json.loads((FOLDER / name / "config.json").read_text())
    return {**config, **config.pop("text_config", {})}


def weights_of(name: str) -> Weights:
    """float16 tensors of the text part, by the names of a model of text alone."""
    found = load_file(FOLDER / name / "model.safetensors")
    return {
        key.removeprefix("language_model."): value
        for key, value in found.items()
        if not key.startswith(("vision_tower.", "multi_modal_projector."))
    }


def expected(name: str) -> dict[str, Any]:
    """Token ids, logits and continuations by transformers."""
    return json.loads((FOLDER / name / "expected.json").read_text())


def stacked(weights: Weights, experts: int) -> Weights:
    """The same with the matrices of the experts of a layer in one tensor, without a number in its name."""
    found: Weights = {}
    for key, value in weights.items():
        head, separator, rest = key.partition(".experts.0.")
        if separator:
            each = [weights[f"{head}.experts.{number}.{rest}"] for number in range(experts)]
            found[f"{head}.experts.{rest}"] = np.stack(each)
        elif ".experts." not in key or not key.split(".experts.")[1][0].isdigit():
            found[key] = value
    return found


def write_family_gguf(path: Path, name: str) -> Path:
    """A checkpoint as a GGUF file that llama.cpp's converter would write."""
    config, weights = config_of(name), weights_of(name)
    arch = _ARCHITECTURES[config["model_type"]]
    numbers = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    # A mixture's own table lacks the dense layers that may be among those with experts.
    tables = [gguf.get_tensor_name_map(numbers[one], config["num_hidden_layers"]) for one in (arch, "llama")]
    tensors: Weights = {}
    for key, value in _prepared(config, weights, arch).items():
        names = (table.get_name(key, try_suffixes=(".weight", ".bias")) for table in tables)
        new = next(name for name in names if name is not None)
        tensors[new] = value.astype(np.float32) if value.ndim == 1 or new.endswith(".bias") else value
    metadata, lists = _metadata(config, arch)
    return write_gguf(path, metadata, {**tensors, **lists})


def _prepared(config: dict[str, Any], weights: Weights, arch: str) -> Weights:
    """Tensors as the converter has them before it renames them."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    found: Weights = {}
    for key, value in stacked(weights, experts).items():
        if arch.startswith("gemma") and key.endswith("norm.weight"):
            value = (value.astype(np.float32) + 1).astype(np.float32)
        if arch in _INTERLEAVED and ".self_attn." in key and ("q_proj" in key or "k_proj" in key):
            value = interleave(value.reshape(len(value), -1), len(value) // head_dim).reshape(value.shape)
        found |= _split(key, value)
    return found


def _split(key: str, value: np.ndarray) -> Weights:
    """Tensors that a converter takes apart or turns."""
    base, _, last = key.rpartition(".experts.")
    if key.endswith(".sinks"):
        return {f"{key}.weight": value}
    if key.endswith(".input_linear.weight"):
        moe = "mlp.experts" if "block_sparse_moe" in key else "mlp.shared_expert"
        gate, up = np.split(value, 2, axis=-2)
        layer = key.partition(".block_sparse_moe" if "block_sparse_moe" in key else ".shared_mlp")[0]
        return {f"{layer}.{moe}.gate_proj.weight": gate, f"{layer}.{moe}.up_proj.weight": up}
    if last.startswith("gate_up_proj"):  # of gpt-oss
        if not key.endswith("_bias"):
            value = value.swapaxes(-1, -2)
            return {f"{base}.experts.{part}_proj.weight": value[:, n::2] for n, part in enumerate(("gate", "up"))}
        return {f"{base}.experts.{part}_proj.bias": value[..., n::2] for n, part in enumerate(("gate", "up"))}
    if last == "down_proj":
        return {f"{key}.weight": value.swapaxes(-1, -2)}
    if last == "down_proj_bias":
        return {f"{base}.experts.down_proj.bias": value}
    if last in ("w1.weight", "w2.weight", "w3.weight"):
        return {f"{base}.experts.{last}": value}
    return {key: value}


def _metadata(config: dict[str, Any], arch: str) -> tuple[dict[str, Any], Weights]:
    heads, kind = config["num_attention_heads"], config["model_type"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rules = config["rope_parameters"]
    rule = rules.get("full_attention", rules)
    turned = int(head_dim * rule.get("partial_rotary_factor", 1))
    found: dict[str, Any] = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads, "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim, "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]), "rope.freq_base": float(rule["rope_theta"]),
        "rope.dimension_count": turned,
    }  # fmt: skip
    if config.get("sliding_window"):
        found["attention.sliding_window"] = config["sliding_window"]
    if kind in ("olmo3", "ministral"):
        found["attention.sliding_window_pattern"] = [one == "sliding_attention" for one in config["layer_types"]]
    if kind == "gemma2":
        found |= {f"{key}_logit_softcapping": float(config[f"{key}_logit_softcapping"]) for key in ("attn", "final")}
        found["attention.scale"] = config["query_pre_attn_scalar"] ** -0.5
    if arch.startswith("granite"):
        found |= {
            "attention.scale": config["attention_multiplier"], "embedding_scale": config["embedding_multiplier"],
            "residual_scale": config["residual_multiplier"], "logit_scale": config["logits_scaling"],
        }  # fmt: skip
    found |= _expert_metadata(config, kind)
    scaling, lists = _rope_metadata(config, rule)
    values = {f"{arch}.{key}": value for key, value in (found | scaling).items()}
    return {"general.architecture": arch, **values}, lists


def _expert_metadata(config: dict[str, Any], kind: str) -> dict[str, Any]:
    experts = config.get("num_local_experts") or config.get("num_experts")
    if not experts:
        return {}
    found = {"expert_count": experts, "expert_used_count": config["num_experts_per_tok"]}
    if kind == "qwen3_moe":
        found["expert_feed_forward_length"] = config["moe_intermediate_size"]
    if kind == "gpt_oss":
        found["expert_feed_forward_length"] = config["intermediate_size"]
    if config.get("shared_intermediate_size"):
        found["expert_shared_feed_forward_length"] = config["shared_intermediate_size"]
    return found


def _rope_metadata(config: dict[str, Any], rule: dict[str, Any]) -> tuple[dict[str, Any], Weights]:
    kind = rule["rope_type"]
    if kind == "default":
        return {}, {}
    if kind == "longrope":
        original = config["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / original
        scale = float(np.sqrt(1 + np.log(factor) / np.log(original)))
        lists = {f"rope_factors_{key}.weight": np.array(rule[f"{key}_factor"], np.float32) for key in ("long", "short")}
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": scale}, lists
    found: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": float(rule["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = rule["original_max_position_embeddings"]
        found |= {f"rope.scaling.yarn_{key}": float(rule[key]) for key in ("beta_fast", "beta_slow") if key in rule}
        if "mscale_all_dim" in rule:
            found["rope.scaling.yarn_log_multiplier"] = float(rule["mscale_all_dim"])
    if "llama_4_scaling_beta" in rule:
        found["attention.temperature_scale"] = float(rule["llama_4_scaling_beta"])
    return found, {}


def mlx_weights(name: str) -> Weights:
    """The tensors of a checkpoint under the names of mlx-lm 0.32, which stacks experts and takes fused ones apart."""
    config, found = config_of(name), {}
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    mixtral = dict(zip(("w1", "w3", "w2"), _PARTS, strict=True))
    for key, value in stacked(weights_of(name), experts).items():
        base, separator, last = key.rpartition(".experts.")
        if config["model_type"] == "gpt_oss" and separator:
            found |= _split(key, value)
        elif separator:
            part = last.removesuffix(".weight")
            found[f"{base}.switch_mlp.{mixtral.get(part, part)}.weight"] = value
        elif key.endswith("block_sparse_moe.input_linear.weight"):
            base, (gate, up) = key.removesuffix(".input_linear.weight"), np.split(value, 2, axis=1)
            found |= {f"{base}.switch_mlp.gate_proj.weight": gate, f"{base}.switch_mlp.up_proj.weight": up}
        elif key.endswith("block_sparse_moe.output_linear.weight"):
            found[key.replace("output_linear", "switch_mlp.down_proj")] = value
        else:
            found[key] = value
    return found
