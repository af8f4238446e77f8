"""A model as a folder of the Hugging Face layout, for peers that run it from there: float16, config, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from specdec.formats import open_source
from specdec.model.architecture import ModelConfig
from specdec.store import Store
from specdec.tokenizers.meta import BPE_NAME, META_NAME
from specdec.weights.dtypes import to_float32

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_PARTS = {"attn": "self_attn", "mlp": "mlp", "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def as_folder(model: Path, work: Path) -> Path:
    """The model of a .gguf file or a store, as a folder below `work`, made once.

    Raises:
        SystemExit: a model of a kind that is not written here.
    """
    folder = work / f"{model.stem}-hf"
    if (folder / "config.json").exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if model.is_dir():
        store = Store.open(model)
        config = store.config
        tensors = _tensors(config, lambda name: _bits(store, name), store.vector, store.dtype)
        files = {path.name: path.read_bytes() for path in store.tokenizer_path.iterdir()}
    else:
        source = open_source(model)
        config, tensors = source.config, _tensors(source.config, source.matrix, source.vector, source.dtype)
        files = source.tokenizer_files
    save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(unfinished, files)
    (unfinished / "config.json").write_text(json.dumps(_config(config, files), indent=1))
    unfinished.rename(folder)
    return folder


def _bits(store: Store, name: str) -> np.ndarray:
    if name in store.config.matrices():
        return store.exact(name).dense_bits()
    table = store.table(name)
    if not isinstance(table, np.ndarray):
        raise SystemExit(f"{store.path} holds quantised weights: convert it with --to f16")
    return np.array(table)


def _tensors(config: ModelConfig, matrix: Any, vector: Any, dtype: str) -> dict[str, np.ndarray]:
    """Every tensor under its Hugging Face name, float16; vectors are rounded to it, as checkpoints hold them."""
    if config.family not in _CLASSES or config.num_experts:
        raise SystemExit(f"models of the kind {config.family} are not written for peers")
    found = {}
    for name in (*config.matrices(), *config.tables()):
        bits = matrix(name)
        found[_name(name, tied=config.tie_embeddings)] = np.ascontiguousarray(
            bits.view(np.float16) if dtype == "float16" else to_float32(bits, dtype).astype(np.float16)
        )
    for name in config.vectors():
        found[_name(name, tied=False)] = vector(name).astype(np.float16)
    return found


def _name(name: str, *, tied: bool) -> str:
    """`layers.3.attn.q` as `model.layers.3.self_attn.q_proj.weight`."""
    head = "model.embed_tokens" if tied else "lm_head"
    outer = {"head": head, "embed": "model.embed_tokens", "final_norm": "model.norm"}
    if name in outer:
        return f"{outer[name]}.weight"
    _, layer, block, *rest = name.split(".")
    words = ["model.layers", layer, _PARTS[block]]
    if rest:
        words.append(rest[0] if rest[0].endswith("_norm") else f"{rest[0]}_proj")
    return ".".join([*words, rest[1] if len(rest) > 1 else "weight"])


def _config(config: ModelConfig, files: dict[str, bytes]) -> dict[str, Any]:
    meta = json.loads(files[META_NAME])
    values: dict[str, Any] = {
        "architectures": [_CLASSES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float16",
        "eos_token_id": meta["eos_ids"],
        "bos_token_id": meta["bos_id"],
    }
    if config.rope_factors is not None or any(config.window(layer) for layer in range(config.num_layers)):
        raise SystemExit("models with scaled rotary positions or a sliding window are not written for peers")
    return values


def _write_tokenizer(folder: Path, files: dict[str, bytes]) -> None:
    if BPE_NAME not in files:
        raise SystemExit("models with a sentencepiece tokenizer are not written for peers")
    (folder / BPE_NAME).write_bytes(files[BPE_NAME])
    special = json.loads(files[META_NAME])["special_tokens"]
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(content, indent=1))
