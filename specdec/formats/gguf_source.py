"""A GGUF file as a `Source`. What its metadata mean and which tensor is which matrix is for `specdec.families`.

The tokenizer inside the file is rebuilt by `gguf_tokenizer`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.families.gguf import EMBED, HEAD
from specdec.families.gguf_fields import GgufFields
from specdec.families.registry import families, from_gguf, gguf_family
from specdec.families.rope_gguf import DIVISORS
from specdec.formats.gguf_file import GGUFFile
from specdec.formats.gguf_tokenizer import tokenizer_files
from specdec.formats.weights import FileSource, check_counts, check_tensors, find_origins, stored_types


def open_gguf(path: Path, *, dtype: str | None = None) -> FileSource:
    """A GGUF file.

    Args:
        path: the file.
        dtype: "float16", "bfloat16", or None for bfloat16 when most weights are stored as BF16, else float16.

    Raises:
        ModelFormatError: damaged, or of a kind that this version does not read.
    """
    file = GGUFFile(path)
    try:
        fields = _read_fields(file)
        config = from_gguf(fields)
        check_counts(config, file)
        origins = find_origins(config, families()[config.family].gguf or {}, file.names())
        check_tensors(file, origins, ignored=DIVISORS)
        return FileSource(
            file,
            config,
            origins=origins,
            dtype=dtype,
            description={
                "kind": "gguf",
                "file": file.label,
                "name": name if isinstance(name := file.metadata.get("general.name"), str) else "",
                "types": stored_types(file),
            },
            tokenizer_files=tokenizer_files(fields, vocab_size=config.vocab),
        )
    except BaseException:
        file.close()
        raise


def _read_fields(file: GGUFFile) -> GgufFields:
    """The metadata, with what the families need of the tensors."""
    fields = Fields(file.metadata, file.label)
    gguf_family(fields)  # an unknown architecture is refused before anything else
    if "split.count" in fields and fields.integer("split.count") > 1:
        raise ModelFormatError(f"{fields.where} is one part of a split model: merge the parts into one file first")
    if EMBED not in file.names():
        raise ModelFormatError(f"{file.label} lacks tensor {EMBED!r}")
    return GgufFields(
        file.metadata,
        file.label,
        vocab=file.shape(EMBED)[0],
        tied=HEAD not in file.names(),
        tensors=file.names(),
        rope_divisors={name: _rope_divisors(file, name) for name in DIVISORS if name in file.names()},
    )


def _rope_divisors(file: GGUFFile, name: str) -> tuple[float, ...]:
    """Values of a tensor of rotary divisors."""
    if len(file.shape(name)) != 1:
        raise ModelFormatError(f"{file.label}: tensor {name!r} must have one dimension")
    factors = file.float32(name, 0, 1)[0]
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise ModelFormatError(f"{file.label}: tensor {name!r} must hold positive numbers")
    return tuple(float(x) for x in factors)
