"""Loading a part of a store: which tiers of which matrices are left out, and matrices without them.

Tiers lie in the file one behind another, so what is left out is not read. A weight that is left out counts as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.views.bucket import BucketedMatrix
from specdec.views.layout import BucketLayout

_CHUNK_BUCKETS = 1 << 16


def tiers_to_load(
    scores: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]], layout: BucketLayout, *, share: float
) -> dict[str, int]:
    """How many tiers of every matrix to load, 1 to K, so that at least `share` of all weights are.

    Whole tiers of matrices are left out, the least important first: those whose mean |w| is the smallest part of the
    mean |w| of their matrix. The largest tier of a matrix stays in any case.

    Args:
        scores: float32 (in, K) of every matrix by name.
        shapes: (out, in) of the same.
        layout: bucket and tier sizes.
        share: of the weights, in (0, 1].

    Raises:
        InvalidArgumentError: `share` is no number of that kind, or less than the first tiers alone.
    """
    least = layout.tier_sizes[0] / layout.bucket_size
    if isinstance(share, bool) or not isinstance(share, int | float) or not least <= share <= 1:
        raise InvalidArgumentError(f"load_share must be a number from {least:g} (the first tiers) to 1, not {share!r}")
    sizes = np.array(layout.tier_sizes)
    means = {name: table.mean(axis=0, dtype=np.float64) for name, table in scores.items()}
    whole = {name: float((means[name] * sizes).sum()) / layout.bucket_size or 1.0 for name in scores}
    tiers = [
        (float(means[name][k]) / whole[name], -k, place, name)
        for place, name in enumerate(scores)
        for k in range(1, layout.num_tiers)
    ]
    total = sum(prod(shape) for shape in shapes.values())
    kept, left = dict.fromkeys(scores, layout.num_tiers), float(total)
    for _, rank, _, name in sorted(tiers):
        left -= prod(shapes[name]) * layout.tier_sizes[-rank] / layout.bucket_size
        if left < share * total:
            break
        kept[name] = -rank
    return kept


def loaded_share(kept: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], layout: BucketLayout) -> float:
    """Share of the weights that are in the first `kept` tiers of their matrices."""
    total = sum(prod(shape) for shape in shapes.values())
    return sum(prod(shapes[name]) * sum(layout.tier_sizes[:n]) for name, n in kept.items()) / layout.bucket_size / total


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
