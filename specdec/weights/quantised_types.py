"""How other programs lay out quantised weights, by name: what a code is, and which numbers turn it into a weight.

Every type here is a code of a few bits for each weight, and one scale and perhaps one offset for each group of inputs
of an output: `weight = scale * (code - zero) - offset`, one float32 rounding an operation. Matrices made of these live
in `quantised`, the bits of each type in `gguf_blocks` and `affine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.weights.base import TensorSpec

Arrays = Mapping[str, np.ndarray]

# What a draft sees of a code, and what stays of one that is loaded in part.
UPPER_BITS = 4
# The plane of all other bits, where codes lie in planes: `planes`.
REST = "rest"


@dataclass(frozen=True, slots=True)
class QuantisedType(ABC):
    """One way to store a quantised matrix of shape (out, in), `y = W v`.

    Attributes:
        name: "q4_k", "affine4-g64", …: what a store's description calls it.
        bits: bits of a code.
        zero: the code of weight 0, but for the offset; may lie between two codes.
        group: inputs that share a scale and an offset.
        block: inputs that are stored together; divides the inputs of every matrix of this type.
        extra: bytes of a block other than codes.
    """

    name: str
    bits: int
    zero: float
    group: int
    block: int
    extra: int

    @abstractmethod
    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """The arrays of a matrix of `shape` by name; the first axis of each runs over outputs."""

    @abstractmethod
    def codes(self, arrays: Arrays) -> np.ndarray:
        """Every code, uint8 (out, in)."""

    @abstractmethod
    def scale_and_offset(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and offset of every group, float32 (out, in / group); None where the type has no offset."""

    @abstractmethod
    def heads(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """What a matrix has besides its codes, by name; `scale_and_offset` takes it in place of all arrays."""

    @abstractmethod
    def head_tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """What `heads` returns for a matrix of `shape`."""

    def upper_codes(self, arrays: Arrays, hidden: int) -> np.ndarray:
        """Every code with zeros for its `hidden` lowest bits, uint8 (out, in)."""
        return self.codes(arrays) >> np.uint8(hidden) << np.uint8(hidden)

    def inputs(self, arrays: Arrays, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of the inputs `start` to `stop`, both multiples of `block`, as views."""
        first, last = start // self.block, stop // self.block
        widths = {name: spec.shape[1] for name, spec in self.tensors((1, self.block)).items()}
        return {name: arrays[name][:, first * width : last * width] for name, width in widths.items()}

    def check_inputs(self, inputs: int) -> None:
        """Refuse a row that is not a whole number of blocks.

        Raises:
            InvalidArgumentError: it is not.
        """
        if inputs < 1 or inputs % self.block:
            raise InvalidArgumentError(
                f"{self.name} stores blocks of {self.block} inputs, and {inputs} is not a multiple of that"
            )

    def bytes_of(self, codes: int, blocks: int) -> int:
        """Bytes of this number of codes, and of everything but codes in this number of blocks."""
        return codes * self.bits // 8 + blocks * self.extra

    def dequantise(self, arrays: Arrays) -> np.ndarray:
        """The weights, float32 (out, in), in the order of operations that the type's own readers follow."""
        codes, (scale, offset) = self.codes(arrays), self.scale_and_offset(arrays)
        outputs, inputs = codes.shape
        weights = codes.reshape(outputs, -1, self.group).astype(np.float32)
        if self.zero:
            weights -= np.float32(self.zero)
        weights *= scale[..., None]
        if offset is not None:
            weights -= offset[..., None]
        return weights.reshape(outputs, inputs)


@dataclass(frozen=True, slots=True)
class DerivedType(QuantisedType):
    """A type with another's scales and offsets, and all else that lies beside codes.

    Attributes:
        whole: the other.
    """

    whole: QuantisedType

    def scale_and_offset(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray | None]:
        """Those of the whole type."""
        return self.whole.scale_and_offset(arrays)

    def heads(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Those of the whole type."""
        return self.whole.heads(arrays)

    def head_tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """Those of the whole type."""
        return self.whole.head_tensors(shape)


@dataclass(frozen=True, slots=True)
class UpperBits(DerivedType):
    """Another type, seen through the upper `bits` bits of its codes: lower ones count as half of their range.

    With `n - bits` hidden bits, `code'` the code with those set to zero and `half = (2^(n - bits) - 1) / 2`, a weight
    is `scale * (code' + half - zero)`, minus the offset where there is one. The bracket is exact in float32; product
    and difference round once each, as in the whole type. Its `zero` is therefore `zero - half`.
    """

    @property
    def hidden(self) -> int:
        """Bits of a code that are not seen."""
        return self.whole.bits - self.bits

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """Those of the whole type, but for a plane of what is not seen."""
        return {name: spec for name, spec in self.whole.tensors(shape).items() if name != REST}

    def codes(self, arrays: Arrays) -> np.ndarray:
        """Codes, uint8 (out, in), with zeros for the hidden bits."""
        return self.whole.upper_codes(arrays, self.hidden)


def upper_bits(kind: QuantisedType, bits: int) -> QuantisedType:
    """`kind` through the upper `bits` bits of its codes; `kind` itself where it has no more."""
    if kind.bits <= bits:
        return kind
    half = ((1 << kind.bits - bits) - 1) / 2
    return UpperBits(kind.name, bits, kind.zero - half, kind.group, kind.block, kind.extra, kind)
