"""What the readers of both containers offer: names, shapes and rows of tensors. What tensors mean lives elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np


class TensorFile(Protocol):
    """Tensors by name. A tensor of any shape is seen as rows of its last dimension.

    Attributes:
        label: file or folder name, for messages.
    """

    label: str

    def names(self) -> Collection[str]:
        """Every tensor of the file."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes, the one that varies fastest last."""
        ...

    def type_name(self, name: str) -> str:
        """How the values are stored: "F32", "F16", "BF16", or a quantisation such as "Q4_K"."""
        ...

    def float32(self, name: str, start: int, stop: int) -> np.ndarray:
        """float32 (stop - start, columns): those rows, decoded."""
        ...

    def raw16(self, name: str, start: int, stop: int) -> np.ndarray:
        """uint16 (stop - start, columns): those rows as they are stored; only for F16 and BF16."""
        ...

    def blocks(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of those rows as they are stored, 16-bit floats as uint16; only for types that a store keeps."""
        ...

    def close(self) -> None:
        """Drop the memory map."""
        ...
