"""Which files a conversion reads of a model: a store is made from them, and from nothing else that lies beside them."""

from __future__ import annotations

import re
from pathlib import Path

from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.parse import ParseError, parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular

INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"
_UNLISTED = ("model*.safetensors", "weight*.safetensors")
# Configuration, tokenizer and template, and older names of the same. Weights are found by name or through the index.
_SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "vocab.json",
    "merges.txt", "spiece.model", "tekken.json", "tiktoken.model", "vocab.txt",
)  # fmt: skip
_PART = re.compile(r"(.*-)\d{5}(-of-\d{5}\.gguf)")


def folder_files(folder: Path) -> list[Path]:
    """Files of a Hugging Face folder that a conversion reads, those that are there.

    Raises:
        ModelFormatError: the index of the weights cannot be read.
    """
    names = set(_SMALL_FILES)
    if (folder / SINGLE_NAME).exists():
        names.add(SINGLE_NAME)
    elif (folder / INDEX_NAME).exists():
        listed = _listed(folder / INDEX_NAME)
        names |= {INDEX_NAME, *(name for name in listed if isinstance(name, str) and Path(name).name == name)}
    else:
        names |= set(unlisted_weights(folder))
    names |= {f"additional_chat_templates/{path.name}" for path in folder.glob("additional_chat_templates/*.jinja")}
    return [folder / name for name in sorted(names) if (folder / name).exists()]


def unlisted_weights(folder: Path) -> list[str]:
    """Names of the files with weights in a folder that has neither one file of all nor an index, as mlx-lm reads it."""
    for pattern in _UNLISTED:
        if names := sorted(path.name for path in folder.glob(pattern) if path.exists()):
            return names
    return []


def _listed(index: Path) -> list[object]:
    try:
        weights = parse_json(read_regular(index, most_bytes=MOST_TEXT_BYTES)).get("weight_map")
        return list(weights.values())
    except unless_signalled(OSError) as error:
        raise ModelFormatError(f"cannot read {index}: {error.strerror}") from None
    except (ParseError, AttributeError):
        raise ModelFormatError(f"{index} is not valid: it must be a JSON object with a weight_map") from None


def gguf_files(path: Path) -> list[Path]:
    """A GGUF file, with the other parts of a model that is split into `NAME-00001-of-00003.gguf` and so on."""
    if (found := _PART.fullmatch(path.name)) is None:
        return [path]
    before, after = found.groups()
    pattern = re.compile(re.escape(before) + r"\d{5}" + re.escape(after))
    return sorted(one for one in path.parent.iterdir() if pattern.fullmatch(one.name))
