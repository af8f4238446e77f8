"""Interface of a view: a form of the weights, laid out and perhaps rounded for drafts. Each view is a module here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from specdec.errors import StoreError

if TYPE_CHECKING:
    from specdec.weights.quantised import ExactMatrix

EXACT = "exact"  # name of the view that keeps every bit of the weights; no draft view may have it
_MEMORY: dict[str, type[np.generic]] = {
    "U8": np.uint8,
    "U32": np.uint32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F32": np.float32,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of one stored array.

    Attributes:
        dtype: safetensors name: "U8", "U32", "F16", "BF16" (uint16 raw bits in memory) or "F32".
        shape: its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def memory(self) -> type[np.generic]:
        """NumPy type of the raw values: 16-bit floats are uint16."""
        return np.uint16 if self.dtype == "F16" else _MEMORY[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        size = np.dtype(self.memory).itemsize
        for length in self.shape:
            size *= length
        return size


class ViewMatrix(Protocol):
    """One matrix as a view holds it.

    Attributes:
        shape: (out, in) of the matrix, y = W v.
        scores: float32 (in, K), s(i, k); never increases with k.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def scores(self) -> np.ndarray: ...

    @property
    def tier_sizes(self) -> tuple[int, ...]:
        """K weights per tier, relative to their sum: what effort selection counts as shares."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, scores included."""
        ...

    def dequantise(self) -> np.ndarray:
        """The weights that this view multiplies by, float32 (out, in)."""
        ...

    def bytes_read(self, prefix: np.ndarray) -> int:
        """Bytes of weights that one multiplication reads (values, masks, scales; not scores or activations).

        Args:
            prefix: integer (in,), tiers n(i) taken of each input, 0 to K.
        """
        ...


class View(ABC):
    """A kind of view: builds its matrices from the exact ones, and says how they are stored.

    The leading axis of every stored array runs over inputs or over groups of `input_group` inputs. So the arrays of
    consecutive slices of inputs, put one after another, are the arrays of the whole matrix: a store is written by
    slices and can be read by slices.
    """

    name: ClassVar[str]
    # It multiplies by the exact view's own values: a runtime needs no second copy of the weights for it.
    reads_exact: ClassVar[bool] = False
    # Inputs that share something (a scale); a slice of inputs starts at a multiple of it.
    input_group: ClassVar[int] = 1

    def suits(self, *, quantised: bool) -> bool:  # noqa: ARG002
        """Whether this view makes sense for a store, which may have matrices in `quantised` blocks."""
        return True

    @abstractmethod
    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """The arrays that a store holds for a matrix of `shape` (out, in); empty when the exact view's serve."""

    @abstractmethod
    def build(self, matrix: ExactMatrix) -> ViewMatrix:
        """This view of an exact matrix, or of a slice of its inputs. Deterministic."""

    @abstractmethod
    def arrays(self, matrix: ViewMatrix) -> dict[str, np.ndarray]:
        """The arrays of `tensors`, by name, of a matrix that `build` made."""

    @abstractmethod
    def load(self, arrays: Mapping[str, np.ndarray], exact: ExactMatrix) -> ViewMatrix:
        """A matrix from stored arrays.

        Args:
            arrays: as `tensors` describes them; may be memory-mapped.
            exact: the same matrix in the exact view.

        Raises:
            StoreError: an array is missing, or has another type or shape.
        """

    def check_arrays(self, arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> None:
        """Refuse arrays that are not those of `tensors`.

        Raises:
            StoreError: one is missing or unknown, or has another type or shape.
        """
        specs = self.tensors(shape)
        if set(arrays) != set(specs):
            raise StoreError(f"view {self.name!r} needs the arrays {sorted(specs)}, not {sorted(arrays)}")
        for name, spec in specs.items():
            if arrays[name].shape != spec.shape or arrays[name].dtype != _MEMORY[spec.dtype]:
                raise StoreError(
                    f"array {name!r} of view {self.name!r} must be {spec.dtype} {spec.shape} for a matrix of shape "
                    f"{shape}, not {arrays[name].dtype} {arrays[name].shape}"
                )
