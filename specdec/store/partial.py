"""Loading a part of a store: which parts of which matrices are left out, and matrices without them.

A matrix in buckets has its tiers for parts; one that is left out counts as 0. A quantised one has the upper four bits
of its codes, and the rest, which counts as half of its range. What is left out is not read, but for the rest of codes
in blocks (stores of version 2), which hold both side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdec.checks import as_number
from specdec.errors import OptionError
from specdec.warn import warn
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.layout import BucketLayout
from specdec.weights.quantised import QuantisedMatrix, quantised_type
from specdec.weights.quantised_types import UPPER_BITS, upper_bits

_CHUNK_BUCKETS = 1 << 16
# Outputs of a quantised matrix that are looked at, spread over all, to tell what the rest of its codes is worth.
_SAMPLED_OUTPUTS = 64


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one matrix in the order in which they are kept.

    Attributes:
        what: in words, what the first part is.
        bits: bits of values or codes in each.
        worth: what each means to the matrix; those of different matrices are compared. The first is never left out.
    """

    what: str
    bits: tuple[float, ...]
    worth: tuple[float, ...]


def tier_parts(scores: np.ndarray, shape: tuple[int, int], layout: BucketLayout) -> Parts:
    """The tiers of a matrix in buckets. A tier's worth is its mean |w|, over the mean |w| of the matrix.

    Args:
        scores: float32 (in, K).
        shape: (out, in).
        layout: bucket and tier sizes.
    """
    sizes, means = np.array(layout.tier_sizes), scores.mean(axis=0, dtype=np.float64)
    whole = float((means * sizes).sum()) / layout.bucket_size or 1.0
    each = 16 * math.prod(shape) / layout.bucket_size
    return Parts("the first tiers", tuple(float(each * size) for size in sizes), tuple(float(m) / whole for m in means))


def plane_parts(kind: str, shape: tuple[int, int], worth: float) -> Parts:
    """The upper four bits of a quantised matrix's codes, and the rest where there is one.

    Args:
        kind: name of its type.
        shape: (out, in).
        worth: that of the rest, as `rest_worth` has it.
    """
    weights, bits = math.prod(shape), quantised_type(kind).bits
    what = "the upper four bits of codes"
    if bits <= UPPER_BITS:
        return Parts(what, (float(weights * bits),), (1.0,))
    return Parts(what, (float(weights * UPPER_BITS), float(weights * (bits - UPPER_BITS))), (1.0, worth))


def rest_worth(matrix: QuantisedMatrix) -> float:
    """What the rest of a quantised matrix's codes means to it.

    The mean change of a weight that is without it, over the mean |w| of the matrix, both over some of the outputs; six
    digits, which do not depend on the order of sums. 0 where there is no rest.
    """
    kind, seen = matrix.kind, upper_bits(matrix.kind, UPPER_BITS)
    if seen is kind:
        return 0.0
    rows = np.linspace(0, matrix.shape[0] - 1, min(_SAMPLED_OUTPUTS, matrix.shape[0])).astype(np.intp)
    arrays = {name: array[rows] for name, array in matrix.arrays.items()}
    exact = kind.dequantise(arrays)
    change = float(np.abs(exact - seen.dequantise(arrays)).mean(dtype=np.float64))
    return float(f"{change / (float(np.abs(exact).mean(dtype=np.float64)) or 1.0):.6g}")


def parts_to_load(parts: Mapping[str, Parts], *, share: float) -> dict[str, int]:
    """How many parts of every matrix to load, at least 1, so that at least `share` of all bits are.

    Parts are left out whole, those of least worth first, until one more would be too many. Where that is the first one
    already, a warning says so.

    Args:
        parts: of every matrix by name.
        share: of the bits of all values and codes, in (0, 1].

    Raises:
        OptionError: `share` is not a number of that kind, or less than the first parts alone.
    """
    total = sum(sum(one.bits) for one in parts.values())
    least = _thousandths(sum(one.bits[0] for one in parts.values()) / total)
    if not least <= as_number(share) <= 1:
        if least == 1:
            raise OptionError(
                "load_share",
                f"must be 1, not {share!r}: the codes of this store have four bits, and none can be left out",
            )
        firsts = " and ".join(sorted({one.what for one in parts.values()}))
        raise OptionError("load_share", f"must be a number from {least:g} ({firsts}) to 1, not {share!r}")
    order = sorted(
        (one.worth[k], -k, place, name)
        for place, (name, one) in enumerate(parts.items())
        for k in range(1, len(one.bits))
    )
    kept, left = {name: len(one.bits) for name, one in parts.items()}, total
    for _, rank, _, name in order:
        left -= parts[name].bits[-rank]
        if left < share * total:
            break
        kept[name] = -rank
    if share < 1 and loaded_share(kept, parts) == 1:
        _, rank, _, name = order[0]
        useful = _thousandths(1 - parts[name].bits[-rank] / total)
        warn(f"load_share={share:g} leaves nothing out of this model, {useful:g} would")
    return kept


def _thousandths(share: float) -> float:
    """A share rounded down, so that what a message shows can be asked for."""
    return math.floor(share * 1000) / 1000


def loaded_share(kept: Mapping[str, int], parts: Mapping[str, Parts]) -> float:
    """Share of the bits that are in the first `kept` parts of their matrices."""
    total = sum(sum(one.bits) for one in parts.values())
    return sum(sum(parts[name].bits[:count]) for name, count in kept.items()) / total


@dataclass(frozen=True, slots=True, eq=False)
class PartialMatrix(BucketedMatrix):
    """A matrix of which only the first tiers were loaded. Those left out hold zeros, and their scores are 0.

    Attributes:
        loaded: tiers that were.
    """

    loaded: int

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that were loaded, scores included."""
        parts = (*self.values[: self.loaded], *self.masks[: self.loaded], self.scores)
        return sum(part.nbytes for part in parts)

    def bytes_read(self, prefix: np.ndarray) -> int:
        """See `BucketedMatrix.bytes_read`; what was not loaded is not read."""
        return BucketedMatrix.bytes_read(self, np.minimum(prefix, self.loaded))


def without_tiers(
    arrays: Mapping[str, np.ndarray], shape: tuple[int, int], dtype: str, layout: BucketLayout
) -> PartialMatrix:
    """A matrix from the arrays of its first tiers and its scores; no others are looked at.

    Where the tiers left out would lie in a bucket is not known, and does not matter: their masks share out what is free
    in order of output.
    """
    loaded = sum(f"tier{k}.values" in arrays for k in range(layout.num_tiers))
    inputs, buckets = shape[1], layout.buckets(shape[0])
    values = [arrays[f"tier{k}.values"] for k in range(loaded)]
    values += [np.zeros((inputs, buckets, size), np.uint16) for size in layout.tier_sizes[loaded:]]
    masks = [arrays[f"tier{k}.mask"] for k in range(min(loaded, layout.num_tiers - 1))]
    masks += _free_masks(masks, layout)
    scores = np.array(arrays["scores"])
    scores[:, loaded:] = 0
    return PartialMatrix(shape, dtype, layout, tuple(values), tuple(masks), scores, loaded)


def _free_masks(masks: list[np.ndarray], layout: BucketLayout) -> list[np.ndarray]:
    """Masks of the tiers after those of `masks`, but for the last tier."""
    first, last = len(masks), layout.num_tiers - 1
    found = [np.empty_like(masks[0]) for _ in range(first, last)]
    flat = [mask.reshape(-1, layout.mask_bytes) for mask in masks]
    for start in range(0, len(flat[0]) if found else 0, _CHUNK_BUCKETS):
        part = slice(start, start + _CHUNK_BUCKETS)
        taken = np.bitwise_or.reduce([mask[part] for mask in flat])
        free = np.unpackbits(~taken, axis=-1, bitorder="little").view(bool)
        rank, begin = np.cumsum(free, axis=-1) - 1, 0
        for k in range(first, last):
            end = begin + layout.tier_sizes[k]
            chosen = free & (rank >= begin) & (rank < end)
            found[k - first].reshape(-1, layout.mask_bytes)[part] = np.packbits(chosen, axis=-1, bitorder="little")
            begin = end
    return found
