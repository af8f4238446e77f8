"""What a GGUF file says of its model: metadata under the family's prefix, and what only its tensors tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields


class GgufFields(Fields):
    """Metadata of a GGUF file.

    Args:
        values: the metadata.
        where: name of the file, for messages.
        vocab: rows of the embedding table.
        tied: the file has no logits layer of its own.
        tensors: names of the file's tensors.
        rope_divisors: values of the file's tensors of rotary divisors, by name.

    Attributes:
        vocab, tied, tensors, rope_divisors: the same.
        architecture: `general.architecture`.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        *,
        vocab: int,
        tied: bool,
        tensors: Collection[str] = (),
        rope_divisors: Mapping[str, tuple[float, ...]],
    ) -> None:
        super().__init__(values, where)
        self.vocab, self.tied, self.rope_divisors = vocab, tied, rope_divisors
        self.tensors = frozenset(tensors)
        self.architecture = self.text("general.architecture")

    def key(self, name: str) -> str:
        """Full name of a key of the model: `llama.block_count`."""
        return f"{self.architecture}.{name}"

    def flags(self, name: str, count: int) -> list[bool] | None:
        """A list with true or false for each of `count` layers; None when absent or a single number.

        Raises:
            ModelFormatError: another list.
        """
        key = self.key(name)
        values = self.values.get(key)
        if not isinstance(values, list):
            return None
        if len(values) < count or not all(value in (0, 1) for value in values):
            raise self.wrong(key, f"true or false for each of {count} layers")
        return [bool(value) for value in values[:count]]

    def per_layer(self, name: str, default: int | None = None) -> int:
        """A whole number that may be given once or for each layer.

        Raises:
            ModelFormatError: layers differ.
        """
        key = self.key(name)
        values = self.values.get(key)
        if not isinstance(values, list):
            return self.integer(key, default)
        if len(set(values)) != 1:
            raise ModelFormatError(f"{self.where}: {key} differs between layers, which is not supported")
        return Fields({key: values[0]}, self.where).integer(key)
