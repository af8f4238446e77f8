"""Layers in safetensors files: the arrays of `TreeWeights` under their own names, and a few words about them.

The metadata of the file holds `format` ("specdec-fff"), `version` ("1"), `activation`, and notes of the caller, which
are strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from specdec.errors import InvalidArgumentError, LayerFileError
from specdec.fff.weights import NAMES, Activation, TreeWeights
from specdec.interrupts import unless_signalled
from specdec.read_file import open_regular
from specdec.whole_file import whole_file

FORMAT, VERSION = "specdec-fff", "1"
_OWN = ("format", "version", "activation")


def save_layer(path: str | Path, weights: TreeWeights, *, notes: Mapping[str, str] | None = None) -> None:
    """Write a layer; `path` is replaced when all is written.

    Args:
        path: of the file.
        weights: of the layer.
        notes: anything to keep with it, for instance the names of classes.

    Raises:
        OSError: it cannot be written.
        InvalidArgumentError: a note has a name that the file uses itself.
    """
    notes = dict(notes or {})
    if taken := sorted(set(notes) & set(_OWN)):
        raise InvalidArgumentError(f"a note cannot be called {taken[0]}: the file uses that name itself")
    metadata = {"format": FORMAT, "version": VERSION, "activation": weights.activation, **notes}
    content = save(weights.arrays(), metadata)
    with whole_file(Path(path)) as unfinished:
        unfinished.write_bytes(content)


def load_layer(path: str | Path) -> TreeWeights:
    """Read a layer that `save_layer` wrote.

    Raises:
        LayerFileError: the file is missing, truncated, damaged, or holds something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise LayerFileError(
            f"{path} is not a layer that specdec wrote (`specdec fff convert` reads layers of fastfeedforward)"
        )
    if metadata.get("version") != VERSION:
        raise LayerFileError(
            f"{path} has version {metadata.get('version')} of the format, and this specdec reads {VERSION}"
        )
    if unknown := sorted(set(tensors) - set(NAMES)):
        raise LayerFileError(f"{path} holds an array that no layer has: {unknown[0]}")
    if missing := [name for name in NAMES[:5] if name not in tensors]:
        raise LayerFileError(f"{path} lacks the array {missing[0]}")
    try:
        return TreeWeights(**tensors, activation=cast("Activation", metadata.get("activation")))
    except InvalidArgumentError as error:
        raise LayerFileError(f"{path} is damaged: {error}") from None


def load_notes(path: str | Path) -> dict[str, str]:
    """The notes that were saved with a layer.

    Raises:
        LayerFileError: the file is missing, truncated or damaged.
    """
    return {name: text for name, text in read_tensors(path)[1].items() if name not in _OWN}


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """All arrays and the metadata of a safetensors file.

    Raises:
        LayerFileError: the file is missing, truncated, or of another kind.
    """
    try:
        open_regular(path).close()
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise LayerFileError(f"{path} does not exist") from None
    except unless_signalled(OSError) as error:
        raise LayerFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except unless_signalled(SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise LayerFileError(f"{path} is not a safetensors file, or damaged ({error})") from None
