"""A Hugging Face folder as a `Source`. What its config.json means and which tensor is which matrix is for
`specdec.families`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specdec.errors import ModelFormatError
from specdec.families.base import Family, find
from specdec.families.fields import Fields
from specdec.families.registry import families, from_huggingface
from specdec.formats.files import read_json
from specdec.formats.huggingface_tokenizer import tokenizer_files
from specdec.formats.mlx_file import AffineFolder
from specdec.formats.mxfp4 import TYPE_NAME, Mxfp4Folder
from specdec.formats.safetensors_file import READABLE, SafetensorsFolder
from specdec.formats.tensor_file import TensorFile
from specdec.formats.weights import FileSource, Origin, check_counts, check_tensors, find_origins, stored_types
from specdec.model.architecture import ModelConfig
from specdec.model.bounds import check_bounds
from specdec.weights.quantised import quantised_types

CONFIG_NAME = "config.json"


def open_huggingface(folder: Path, *, dtype: str | None = None) -> FileSource:
    """A folder with config.json and safetensors weights, quantised by MLX or not at all.

    Args:
        folder: the checkpoint.
        dtype: "float16", "bfloat16", or None for bfloat16 when most weights are, else float16.

    Raises:
        ModelFormatError: something is missing, damaged, or of a kind that this version does not read.
    """
    config_values = read_json(folder / CONFIG_NAME)
    config = from_huggingface(Fields(config_values, CONFIG_NAME))
    file: TensorFile = _weights(folder, Fields(config_values, CONFIG_NAME))
    try:
        check_counts(config, file)
        check_bounds(config)
        family = families()[config.family]
        origins = find_origins(config, family.huggingface or {}, file.names())
        ignored = {
            name for name in file.names() if name.endswith("rotary_emb.inv_freq") or name.startswith(family.ignored)
        }
        check_tensors(file, origins, ignored=ignored | _redundant_head(config, family, file))
        _check_types(file, origins)
        return FileSource(
            file,
            config,
            origins=origins,
            dtype=dtype,
            description={"kind": "huggingface", "file": folder.resolve().name, "types": stored_types(file)},
            tokenizer_files=tokenizer_files(folder, _with_text_part(config_values)),
        )
    except BaseException:
        file.close()
        raise


def _weights(folder: Path, config: Fields) -> TensorFile:
    file = SafetensorsFolder(folder)
    try:
        if "quantization" in config:
            return AffineFolder(file, config.mapping("quantization"))
        method = config.mapping("quantization_config").values.get("quant_method")
        return Mxfp4Folder(file) if method == "mxfp4" else file
    except BaseException:
        file.close()
        raise


def _with_text_part(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with what only its part for text says, such as the size of the vocabulary."""
    part = config.get("text_config")
    return {**part, **config} if isinstance(part, dict) else config


def _check_types(file: TensorFile, origins: Mapping[str, Origin]) -> None:
    for origin in origins.values():
        if (kind := file.type_name(origin.tensor)) not in (*READABLE, TYPE_NAME, *quantised_types()):
            raise ModelFormatError(
                f"{file.label}: tensor {origin.tensor!r} has type {kind}: this version reads {', '.join(READABLE)}"
            )


def _redundant_head(config: ModelConfig, family: Family, file: TensorFile) -> set[str]:
    """The logits layer that some checkpoints of tied models repeat; it has to equal the embedding table.

    Raises:
        ModelFormatError: it does not.
    """
    (_, head), (_, embed) = (find(family.huggingface or {}, name, set(file.names())) for name in ("head", "embed"))
    if not config.tied or head not in file.names():
        return set()
    shape = (config.vocab, config.hidden)
    equal = embed in file.names() and file.shape(head) == file.shape(embed) == shape
    for start in range(0, config.vocab if equal else 0, 4096):
        stop = min(config.vocab, start + 4096)
        equal = equal and np.array_equal(file.float32(head, start, stop), file.float32(embed, start, stop))
    if not equal:
        raise ModelFormatError(f"{CONFIG_NAME} ties the embeddings, but {head!r} is there and differs from {embed!r}")
    return {head}
