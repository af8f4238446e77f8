"""`store.json`: what a store says about itself, read, written and checked. The tensors are in `tensorfile`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.errors import InvalidArgumentError, ModelFormatError, StoreError
from specdec.interrupts import unless_signalled
from specdec.model.architecture import ModelConfig
from specdec.model.bounds import check_bounds
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.weights.dtypes import check_dtype
from specdec.weights.layout import BucketLayout
from specdec.weights.quantised import plane_type, quantised_type

FORMAT = "specdec bucket store"
FORMAT_VERSION = 5
# What a store is that chooses by tiers: with a list of layers, with codes in planes, with other quantised matrices,
# without. Older versions read it.
LAYERS_VERSION, PLANES_VERSION, BLOCKS_VERSION, PLAIN_VERSION = 4, 3, 2, 1
# What effort below 1 takes or leaves of 16-bit matrices in the exact view; of quantised ones always inputs.
SELECTIONS = ("inputs", "tiers")
# Whether quantised weights stay in their blocks by default.
KEEP_BY_DEFAULT = True
DESCRIPTION_FILE = "store.json"
_FILE_NAME = re.compile(r"(exact|view-[A-Za-z0-9_-]+)\.safetensors|tokenizer/[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of the store must be.

    Attributes:
        nbytes: its size.
        sha256: of the whole file, or of its header where `tensors` has the rest.
        tensors: SHA-256 of every tensor by name, for a safetensors file.
    """

    nbytes: int
    sha256: str
    tensors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDescription:
    """The contents of `store.json`.

    Attributes:
        config: the model.
        layout: bucket and tier sizes.
        dtype: "float16" or "bfloat16", of matrices and tables that are not quantised.
        types: name of the quantised type of every matrix and table that has one.
        rests: of every matrix with its codes in planes, what the rest of them is worth: `partial.rest_worth`.
        selection: what effort below 1 takes or leaves of 16-bit matrices in the exact view, one of `SELECTIONS`.
        dither: seed of the noise that was added to the weights, or None.
        source: where the weights came from.
        views: draft views that have a file.
        files: every other file of the store, by its path inside it.
    """

    config: ModelConfig
    layout: BucketLayout
    dtype: str
    dither: int | None
    source: dict[str, str]
    views: tuple[str, ...]
    files: dict[str, FileRecord]
    types: dict[str, str] = field(default_factory=dict)
    rests: dict[str, float] = field(default_factory=dict)
    selection: str = "tiers"

    @property
    def version(self) -> int:
        """Store format: the oldest that has what this store needs."""
        if self.selection == "inputs":
            return FORMAT_VERSION
        if self.config.to_flat_dict() is None:
            return LAYERS_VERSION
        if self.rests:
            return PLANES_VERSION
        return BLOCKS_VERSION if self.types else PLAIN_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the checksum over all the others included."""
        body = {
            "format": FORMAT,
            "version": self.version,
            "config": self.config.to_flat_dict() or self.config.to_dict(),
            "layout": self.layout.to_dict(),
            "dtype": self.dtype,
            "dither": self.dither,
            "source": self.source,
            "views": list(self.views),
            "files": {
                name: {"bytes": record.nbytes, "sha256": record.sha256, "tensors": record.tensors}
                for name, record in self.files.items()
            },
        }
        body |= {"types": self.types} if self.types else {}
        body |= {"rests": self.rests} if self.rests else {}
        body |= {"selection": self.selection} if self.selection == "inputs" else {}
        return body | {"checksum": _checksum(body)}

    @property
    def checksum(self) -> str:
        """SHA-256 over the description, hence, through the checksums in it, over every byte of the store."""
        return str(self.to_dict()["checksum"])

    @classmethod
    def read(cls, folder: Path) -> StoreDescription:
        """Read and check `folder / store.json`.

        Raises:
            StoreError: it is missing, damaged, of a newer version, or describes an impossible model.
        """
        values = _load(folder)
        version = values.get("version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"{folder} was written by a newer version of specdec (store format {version}, this one reads "
                f"{FORMAT_VERSION}): upgrade specdec"
            )
        damaged = StoreError(f"{folder / DESCRIPTION_FILE} is damaged: convert the model again")
        body = {key: value for key, value in values.items() if key != "checksum"}
        known = (PLAIN_VERSION, BLOCKS_VERSION, PLANES_VERSION, LAYERS_VERSION, FORMAT_VERSION)
        if not isinstance(version, int) or version not in known or values.get("checksum") != _checksum(body):
            raise damaged
        try:
            description = cls._from_body(body)
        except (ModelFormatError, InvalidArgumentError) as error:
            raise StoreError(f"{folder / DESCRIPTION_FILE} does not describe a model: {error}") from None
        except unless_signalled(KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            raise damaged from None
        # The oldest two are read alike.
        newer = {version, description.version} & {PLANES_VERSION, LAYERS_VERSION, FORMAT_VERSION}
        if newer and version != description.version:
            raise damaged
        return description

    @classmethod
    def _from_body(cls, body: dict[str, Any]) -> StoreDescription:
        for name in body["files"]:
            check_file_name(name)
        flat = body["version"] < LAYERS_VERSION or (body["version"] > LAYERS_VERSION and "layers" not in body["config"])
        read_config = ModelConfig.from_flat_dict if flat else ModelConfig.from_dict
        dither, config = body["dither"], check_bounds(read_config(body["config"]))
        described = max((len(entry["tensors"]) for entry in body["files"].values()), default=0)
        if sum(max(1, layer.mlp.experts) for layer in config.layers) > described:
            raise ModelFormatError(f"{config.num_layers} layers need more tensors than the {described} that it has")
        types = {str(name): str(kind) for name, kind in body.get("types", {}).items()}
        rests = {str(name): float(worth) for name, worth in body.get("rests", {}).items()}
        _check_types(config, types, rests)
        return cls(
            config=config,
            layout=BucketLayout.from_dict(body["layout"]),
            dtype=check_dtype(body["dtype"]),
            dither=None if dither is None else int(dither),
            source={str(key): str(value) for key, value in body["source"].items()},
            views=tuple(str(name) for name in body["views"]),
            files={
                name: FileRecord(int(entry["bytes"]), str(entry["sha256"]), dict(entry["tensors"]))
                for name, entry in body["files"].items()
            },
            types=types,
            rests=rests,
            selection=check_selection(body.get("selection", "tiers")),
        )


def check_selection(selection: object) -> str:
    """Refuse a selection that does not exist.

    Raises:
        InvalidArgumentError: `selection` is none of `SELECTIONS`.
    """
    if selection not in SELECTIONS:
        raise InvalidArgumentError(f"a selection is 'inputs' or 'tiers', not {selection!r}")
    return str(selection)


def check_file_name(name: str) -> None:
    """Refuse a file that a store does not have, above all one outside its folder.

    Raises:
        ModelFormatError: `name` is not a file's path inside a store.
    """
    if not _FILE_NAME.fullmatch(name):
        raise ModelFormatError(f"a store has no file named {name!r}")


def _check_types(config: ModelConfig, types: Mapping[str, str], rests: Mapping[str, float]) -> None:
    """Refuse quantised types that a matrix cannot have, and planes of any other matrix."""
    shapes = config.matrices() | config.tables()
    for name, kind in types.items():
        try:
            quantised_type(kind).check_inputs(shapes[name][1])
            if name in rests:
                plane_type(kind)
        except InvalidArgumentError as error:
            raise ModelFormatError(f"tensor {name!r}: {error}") from None
    for name, worth in rests.items():
        if name not in types or name not in config.matrices() or not 0 <= worth < math.inf:
            raise ModelFormatError(f"tensor {name!r} has no rest of codes that is worth {worth}")


def is_store(folder: Path) -> bool:
    """Whether `folder` calls itself a store: of any version, whole or not."""
    try:
        return bool(_load(folder))
    except StoreError:
        return False


def _load(folder: Path) -> dict[str, Any]:
    """The JSON object in `store.json`, known to be that of a store."""
    path = folder / DESCRIPTION_FILE
    try:
        values = parse_json(read_regular(path, most_bytes=MOST_TEXT_BYTES))
    except FileNotFoundError:
        raise StoreError(
            f"{folder} is not a store (no {DESCRIPTION_FILE}): make one with `specdec convert SOURCE -o STORE`"
        ) from None
    except unless_signalled(OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise StoreError(f"cannot read {path}: {error.strerror}") from None
        raise StoreError(f"{path} is damaged: convert the model again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise StoreError(f"{path} does not describe a specdec store")
    return values


def _checksum(body: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `body`: sorted keys, no spaces, ASCII."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
