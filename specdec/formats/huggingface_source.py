"""A Hugging Face folder as a `Source`: which tensor is which matrix. `huggingface_config` reads its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from specdec.errors import ModelFormatError
from specdec.formats.fields import Fields
from specdec.formats.files import read_json
from specdec.formats.huggingface_config import read_config
from specdec.formats.huggingface_tokenizer import tokenizer_files
from specdec.formats.mlx_file import AffineFolder
from specdec.formats.safetensors_file import READABLE, SafetensorsFolder
from specdec.formats.tensor_file import TensorFile
from specdec.formats.weights import FileSource, Origin, check_counts, check_tensors, stored_types
from specdec.model.architecture import ModelConfig
from specdec.model.bounds import check_bounds
from specdec.weights.quantised import quantised_types

CONFIG_NAME = "config.json"
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_EXPERT_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}


def open_huggingface(folder: Path, *, dtype: str | None = None) -> FileSource:
    """A folder with config.json and safetensors weights, quantised by MLX or not at all.

    Args:
        folder: the checkpoint.
        dtype: "float16", "bfloat16", or None for bfloat16 when most weights are, else float16.

    Raises:
        ModelFormatError: something is missing, damaged, or of a kind that this version does not read.
    """
    config_values = read_json(folder / CONFIG_NAME)
    config = read_config(config_values, CONFIG_NAME)
    file: TensorFile = _weights(folder, Fields(config_values, CONFIG_NAME))
    try:
        check_counts(config, file)
        check_bounds(config)
        origins = _origins(config, file)
        ignored = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(config.num_layers)}
        check_tensors(file, origins, ignored=ignored | _redundant_head(config, file))
        _check_types(file, origins)
        return FileSource(
            file,
            config,
            origins=origins,
            dtype=dtype,
            description={"kind": "huggingface", "file": folder.resolve().name, "types": stored_types(file)},
            tokenizer_files=tokenizer_files(folder, config_values),
        )
    except BaseException:
        file.close()
        raise


def _weights(folder: Path, config: Fields) -> TensorFile:
    file = SafetensorsFolder(folder)
    if "quantization" not in config:
        return file
    try:
        return AffineFolder(file, config.mapping("quantization"))
    except BaseException:
        file.close()
        raise


def _check_types(file: TensorFile, origins: Mapping[str, Origin]) -> None:
    for origin in origins.values():
        if (kind := file.type_name(origin.tensor)) not in (*READABLE, *quantised_types()):
            raise ModelFormatError(
                f"{file.label}: tensor {origin.tensor!r} has type {kind}: this version reads {', '.join(READABLE)}"
            )


def _origins(config: ModelConfig, file: TensorFile) -> dict[str, Origin]:
    shapes: dict[str, tuple[int, ...]] = {**config.matrices(), **config.tables()}
    shapes |= {name: (length,) for name, length in config.vectors().items()}
    marks = {"fused": ".experts.gate_up_proj", "stacked": ".switch_mlp."}
    found = [kind for kind, mark in marks.items() if any(mark in name for name in file.names())]
    experts = found[0] if config.num_experts and found else "single"
    return {name: _origin(name, shape, config, experts) for name, shape in shapes.items()}


def _origin(name: str, shape: tuple[int, ...], config: ModelConfig, experts: str) -> Origin:
    """Where the matrix or vector `name` lies. The experts of a layer are "single" tensors, "fused" into two (newer
    checkpoints of transformers) or "stacked" by projection (mlx-lm)."""
    outside = {"embed": _EMBED, "head": _EMBED if config.tie_embeddings else _HEAD, "final_norm": "model.norm.weight"}
    if name in outside:
        return Origin(outside[name], shape)
    _, layer, *parts = name.split(".")
    base = f"model.layers.{layer}"
    match parts:
        case ["attn_norm"]:
            return Origin(f"{base}.input_layernorm.weight", shape)
        case ["mlp_norm"]:
            return Origin(f"{base}.post_attention_layernorm.weight", shape)
        case ["attn", "q_norm" | "k_norm" as norm]:
            return Origin(f"{base}.self_attn.{norm}.weight", shape)
        case ["attn", projection]:
            return Origin(f"{base}.self_attn.{projection}_proj.weight", shape)
        case ["attn", projection, "bias"]:
            return Origin(f"{base}.self_attn.{projection}_proj.bias", shape)
        case ["mlp", "router"]:
            return Origin(f"{base}.{'mlp' if experts == 'fused' else 'block_sparse_moe'}.gate.weight", shape)
        case ["mlp", projection]:
            return Origin(f"{base}.mlp.{projection}_proj.weight", shape)
        case ["mlp", "experts", expert, projection] if experts == "stacked":
            whole = (config.num_experts, *shape)
            stack = f"{base}.block_sparse_moe.switch_mlp.{projection}_proj.weight"
            return Origin(stack, whole, first_row=int(expert) * shape[0])
        case ["mlp", "experts", expert, projection] if experts == "fused":
            return _fused_expert(f"{base}.mlp.experts", int(expert), projection, config)
        case ["mlp", "experts", expert, projection]:
            return Origin(f"{base}.block_sparse_moe.experts.{expert}.{_EXPERT_NAMES[projection]}.weight", shape)
    raise ModelFormatError(f"no Hugging Face tensor is known for {name!r}")


def _fused_expert(base: str, expert: int, projection: str, config: ModelConfig) -> Origin:
    """A slice of `gate_up_proj` (experts, gate rows then up rows, hidden) or `down_proj` (experts, hidden, inner)."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
    if projection == "down":
        return Origin(f"{base}.down_proj", (experts, hidden, inner), first_row=expert * hidden)
    offset = inner if projection == "up" else 0
    return Origin(f"{base}.gate_up_proj", (experts, 2 * inner, hidden), first_row=expert * 2 * inner + offset)


def _redundant_head(config: ModelConfig, file: TensorFile) -> set[str]:
    """The logits layer that some checkpoints of tied models repeat; it has to equal the embedding table.

    Raises:
        ModelFormatError: it does not.
    """
    if not config.tie_embeddings or _HEAD not in file.names():
        return set()
    shape = (config.vocab_size, config.hidden_size)
    equal = _EMBED in file.names() and file.shape(_HEAD) == file.shape(_EMBED) == shape
    for start in range(0, config.vocab_size if equal else 0, 4096):
        stop = min(config.vocab_size, start + 4096)
        equal = equal and np.array_equal(file.float32(_HEAD, start, stop), file.float32(_EMBED, start, stop))
    if not equal:
        raise ModelFormatError(f"{CONFIG_NAME} ties the embeddings, but {_HEAD!r} is there and differs from {_EMBED!r}")
    return {_HEAD}
