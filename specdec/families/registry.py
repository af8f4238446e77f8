"""Model families by the names that sources use. Every module of this package that has a `FAMILY` is one."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules

from specdec.errors import ModelFormatError
from specdec.families import __path__ as _folder
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.others import missing_of
from specdec.model.architecture import ModelConfig


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """All families by name, in order of their names."""
    modules = (import_module(f"specdec.families.{found.name}") for found in iter_modules(_folder))
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
        ModelFormatError: an unknown family, a missing or senseless value, or a feature that the family does not have.
    """
    name = fields.text("model_type")
    known = {
        kind: family
        for family in families().values()
        if family.from_huggingface
        for kind in family.model_types or (family.name,)
    }
    if name not in known:
        raise ModelFormatError(
            f"{fields.where}: {missing_of(name) or f'unknown architecture {name!r}'}: this version reads "
            f"{', '.join(sorted(known))}"
        )
    read = known[name].from_huggingface
    assert read is not None
    return replace(read(fields), family=known[name].name)


def gguf_family(fields: Fields) -> Family:
    """The family whose `from_gguf` reads a file's metadata.

    Raises:
        ModelFormatError: no family here reads files of this architecture.
    """
    name = fields.text("general.architecture")
    known = {family.gguf_name: family for family in families().values() if family.gguf_name}
    if name not in known:
        raise ModelFormatError(
            f"{fields.where}: {missing_of(name) or f'unknown architecture {name!r}'}: GGUF is read for "
            f"{', '.join(sorted(map(str, known)))}"
        )
    return known[name]


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model that the metadata of a GGUF file describes; raises like `from_huggingface`."""
    family = gguf_family(fields)
    assert family.from_gguf is not None
    return family.from_gguf(fields)
