"""Which reader a path needs."""

from __future__ import annotations

from pathlib import Path

from specdec.errors import ModelFormatError
from specdec.formats.base import Source
from specdec.formats.gguf_source import open_gguf
from specdec.formats.huggingface_source import CONFIG_NAME, open_huggingface
from specdec.parse import foreign


def open_source(path: Path, *, dtype: str | None = None) -> Source:
    """A GGUF file or a Hugging Face folder, open for reading.

    Args:
        path: a `.gguf` file, or a folder with config.json.
        dtype: "float16" or "bfloat16" for matrices and tables; None takes bfloat16 when most of the weights are stored
            so, else float16.

    Raises:
        ModelFormatError: it is missing, damaged, or of a kind that this version does not read.
        InvalidArgumentError: `dtype` is neither of the two.
    """
    path = Path(path)
    with foreign(path.name):
        return _open(path, dtype)


def _open(path: Path, dtype: str | None) -> Source:
    if path.is_dir():
        if (path / "store.json").exists():
            raise ModelFormatError(f"{path} is a converted store already: load it as it is")
        if not (path / CONFIG_NAME).exists():
            raise ModelFormatError(f"{path} is not a Hugging Face model: it has no {CONFIG_NAME}")
        return open_huggingface(path, dtype=dtype)
    if not path.exists():
        raise ModelFormatError(f"there is no file or folder {path}")
    if path.suffix == ".safetensors":
        raise ModelFormatError(f"{path} is only part of a model: give the folder that holds it and {CONFIG_NAME}")
    return open_gguf(path, dtype=dtype)
