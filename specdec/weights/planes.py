"""Quantised types with their codes in two planes: the upper four bits of every code, and the rest.

A source's blocks have both side by side; apart, a file can be read up to the rest. Nothing is lost: what a block has
other than codes stays as it is, in `heads`, and codes are cut, not changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specdec.weights.base import TensorSpec
from specdec.weights.quantised_types import REST, UPPER_BITS, Arrays, DerivedType, QuantisedType

UPPER = "upper"
_BYTE_BITS = 8


@dataclass(frozen=True, slots=True)
class PlaneType(DerivedType):
    """Another type, of codes of more than four bits, in planes.

    Arrays: those of `heads`, then `upper`, uint8 (out, in / 2), and `rest`, uint8 (out, in * (bits - 4) / 8): codes in
    order of input, as many as fit in a byte, the first in the lowest bits.
    """

    @property
    def rest_bits(self) -> int:
        """Bits of a code below the upper ones."""
        return self.bits - UPPER_BITS

    def split(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The arrays of the whole type in planes."""
        codes, width = self.whole.codes(arrays), self.rest_bits
        upper, rest = codes >> np.uint8(width), codes & np.uint8((1 << width) - 1)
        return {**self.heads(arrays), UPPER: packed(upper, UPPER_BITS), REST: packed(rest, width)}

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """See `QuantisedType.tensors`."""
        outputs, inputs = shape
        self.check_inputs(inputs)
        widths = {UPPER: UPPER_BITS, REST: self.rest_bits}
        planes = {name: TensorSpec("U8", (outputs, inputs * width // _BYTE_BITS)) for name, width in widths.items()}
        return self.head_tensors(shape) | planes

    def codes(self, arrays: Arrays) -> np.ndarray:
        """See `QuantisedType.codes`."""
        codes = self.upper_codes(arrays, self.rest_bits)
        codes |= unpacked(arrays[REST], self.rest_bits)
        return codes

    def upper_codes(self, arrays: Arrays, hidden: int) -> np.ndarray:
        """See `QuantisedType.upper_codes`; the rest is not read where all of it is hidden."""
        if hidden < self.rest_bits:
            return QuantisedType.upper_codes(self, arrays, hidden)
        return unpacked(arrays[UPPER], UPPER_BITS) >> np.uint8(hidden - self.rest_bits) << np.uint8(hidden)


def in_planes(kind: QuantisedType) -> PlaneType:
    """A type of codes of more than four bits, in planes."""
    return PlaneType(kind.name, kind.bits, kind.zero, kind.group, kind.block, kind.extra, kind)


def packed(codes: np.ndarray, width: int) -> np.ndarray:
    """Codes of `width` bits, uint8 (out, in), as many as fit in a byte of (out, in * width / 8), the first lowest."""
    lanes = codes.reshape(len(codes), -1, _BYTE_BITS // width)
    found: np.ndarray = lanes[..., 0].copy()
    for lane in range(1, _BYTE_BITS // width):
        found |= lanes[..., lane] << np.uint8(lane * width)
    return found


def unpacked(plane: np.ndarray, width: int) -> np.ndarray:
    """What `packed` was given."""
    found = np.empty((*plane.shape, _BYTE_BITS // width), dtype=np.uint8)
    for lane in range(_BYTE_BITS // width):
        np.bitwise_and(plane >> np.uint8(lane * width), np.uint8((1 << width) - 1), out=found[..., lane])
    return found.reshape(len(plane), -1)
