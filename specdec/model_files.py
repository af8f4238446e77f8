"""Which files of a model's folder a conversion reads. A store is made from these files alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase as fnmatch
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
_TEMPLATES = "additional_chat_templates"
_POINTER = b"version https://git-lfs.github.com/"
_PART = re.compile(r"(.*-)\d{5}(-of-\d{5}\.gguf)")


def check_content(head: bytes, name: str) -> None:
    """Refuse a file that stands for another one: a clone made without Git LFS has such in place of large files.

    Args:
        head: its first bytes.
        name: names it in the message.

    Raises:
        ModelFormatError: it is a pointer of Git LFS.
    """
    if head.startswith(_POINTER):
        raise ModelFormatError(f"{name} is a pointer of Git LFS, not the file itself: run git lfs pull in its folder")


def folder_files(folder: Path) -> list[Path]:
    """Files of a Hugging Face folder that a conversion reads, as far as they exist.

    Raises:
        ModelFormatError: the index of the weights cannot be read.
    """
    names = [path.name for path in folder.iterdir() if path.exists()] if folder.is_dir() else []
    names += [f"{_TEMPLATES}/{path.name}" for path in folder.glob(f"{_TEMPLATES}/*.jinja")]
    index = folder / INDEX_NAME
    try:
        found = folder_names(names, lambda: read_regular(index, most_bytes=MOST_TEXT_BYTES))
    except unless_signalled(OSError) as error:
        raise ModelFormatError(f"cannot read {index}: {error.strerror}") from None
    return [folder / name for name in found]


def folder_names(names: Collection[str], read_index: Callable[[], bytes]) -> list[str]:
    """The files of a Hugging Face folder that a conversion reads.

    Args:
        names: files that there are, relative to the folder.
        read_index: content of the index of the weights, asked for only where it is needed.

    Raises:
        ModelFormatError: the index is damaged.
    """
    wanted = set(_SMALL_FILES)
    if SINGLE_NAME in names:
        wanted.add(SINGLE_NAME)
    elif INDEX_NAME in names:
        listed = _listed(read_index())
        wanted |= {INDEX_NAME, *(name for name in listed if isinstance(name, str) and Path(name).name == name)}
    else:
        wanted |= set(_unlisted(names))
    wanted |= {name for name in names if fnmatch(name, f"{_TEMPLATES}/*.jinja")}
    return sorted(wanted.intersection(names))


def unlisted_weights(folder: Path) -> list[str]:
    """Names of the files with weights in a folder that has neither one file of all nor an index, as mlx-lm reads it."""
    return _unlisted([path.name for path in folder.iterdir() if path.exists()] if folder.is_dir() else [])


def _unlisted(names: Collection[str]) -> list[str]:
    for pattern in _UNLISTED:
        if found := sorted(name for name in names if "/" not in name and fnmatch(name, pattern)):
            return found
    return []


def _listed(index: bytes) -> list[object]:
    try:
        return list(parse_json(index)["weight_map"].values())
    except (ParseError, AttributeError, KeyError, TypeError):
        raise ModelFormatError(f"{INDEX_NAME} is not valid: it must be a JSON object with a weight_map") from None


def split_group(name: str) -> str:
    """What the parts of a GGUF model share: its name with the number left out; any other name as it is."""
    found = _PART.fullmatch(name)
    return name if found is None else "*".join(found.groups())


def gguf_files(path: Path) -> list[Path]:
    """A GGUF file, with the other parts of a model that is split into `NAME-00001-of-00003.gguf` and so on."""
    if (found := _PART.fullmatch(path.name)) is None:
        return [path]
    before, after = found.groups()
    pattern = re.compile(re.escape(before) + r"\d{5}" + re.escape(after))
    return sorted(one for one in path.parent.iterdir() if pattern.fullmatch(one.name))
