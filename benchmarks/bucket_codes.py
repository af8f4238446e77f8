"""The 8- and 4-bit bucketMul of the Effort engine, as its author describes them, in NumPy: for comparison only.

Both cut the outputs of an input into buckets of 8 and rank the weights of a bucket by |w|; rank r of all buckets of an
input is a slice, which effort takes or leaves. A code is a sign and three bits of place in the bucket. The 8-bit code
adds four bits of magnitude between the smallest and the largest |w| of the slice. The 4-bit code has no more bits: a
weight of a slice has the slice's mean |w|, and the largest of the whole matrix are kept apart, exactly ("outliers").

Source: https://kolinko.github.io/effort/q8.html and the repository's drafts of a 4-bit kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BUCKET = 8
_LEVELS = 15
# Share of the weights that the author's 4-bit draft keeps apart, and bytes of one: a float16 and a 4-byte place.
OUTLIERS, OUTLIER_BYTES = 0.02, 6
_CHUNK_INPUTS = 64


@dataclass(frozen=True)
class SliceCodes:
    """A matrix of shape (out, in) in slices.

    Attributes:
        weights: float32 (in, out), what the codes stand for; 0 at outliers.
        tiers: uint8 (in, out), rank of each weight in its bucket.
        scores: float32 (in, 8), mean |w| of each slice.
        outliers: float32 (in, out), or None.
        bits: of a code.
        apart: share of the weights that are outliers.
    """

    weights: np.ndarray
    tiers: np.ndarray
    scores: np.ndarray
    outliers: np.ndarray | None
    bits: int
    apart: float = 0.0

    def bytes_read(self, share: float) -> float:
        """Bytes that a multiplication with this share of the slices reads: codes, two float16 a slice, all outliers."""
        size = self.weights.size
        return share * (size * self.bits / 8 + 4 * BUCKET * len(self.weights)) + self.apart * OUTLIER_BYTES * size


def _padded(weights: np.ndarray) -> np.ndarray:
    return np.pad(weights, ((0, 0), (0, -weights.shape[1] % BUCKET)))


def _ranks(weights: np.ndarray) -> np.ndarray:
    """Rank of each weight in its bucket, the largest first, the lower output first of equal ones: uint8 (in, out)."""
    ranks = np.empty(weights.shape, np.uint8)
    for start in range(0, len(weights), _CHUNK_INPUTS):
        part = np.abs(weights[start : start + _CHUNK_INPUTS]).reshape(-1, BUCKET)
        order = np.argsort(-part, axis=1, kind="stable")
        found = np.empty_like(order, dtype=np.uint8)
        np.put_along_axis(found, order, np.arange(BUCKET, dtype=np.uint8)[None], axis=1)
        ranks[start : start + _CHUNK_INPUTS] = found.reshape(-1, weights.shape[1])
    return ranks


def bucket_q8(weights: np.ndarray) -> SliceCodes:
    """Sign, place and four bits of magnitude, of weights float32 (in, out)."""
    padded = _padded(weights)
    ranks, sizes = _ranks(padded), np.abs(padded)
    coded, scores = np.zeros_like(padded), np.empty((len(padded), BUCKET), np.float32)
    for rank in range(BUCKET):
        here = ranks == rank  # one of each bucket, so the same number in every input
        values = sizes[here].reshape(len(padded), -1)
        low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
        step = (high - low) / np.float32(_LEVELS)
        level = np.rint(np.divide(values - low, step, out=np.zeros_like(values), where=step > 0))
        coded[here] = (low + step * level).reshape(-1)
        scores[:, rank] = values.mean(axis=1, dtype=np.float64)
    outputs = weights.shape[1]
    return SliceCodes(np.copysign(coded, padded)[:, :outputs], ranks[:, :outputs], scores, None, 8)


def bucket_q4(weights: np.ndarray, *, outliers: float = OUTLIERS) -> SliceCodes:
    """Sign and place, with the largest `outliers` of the weights apart, of weights float32 (in, out)."""
    count = max(1, int(weights.size * outliers))
    largest = np.argpartition(np.abs(weights).ravel(), weights.size - count)[weights.size - count :]
    apart, rest = np.zeros_like(weights), weights.copy()
    apart.ravel()[largest] = weights.ravel()[largest]
    rest.ravel()[largest] = 0
    padded = _padded(rest)
    ranks, sizes = _ranks(padded), np.abs(padded)
    coded, scores = np.zeros_like(padded), np.empty((len(padded), BUCKET), np.float32)
    for rank in range(BUCKET):
        here = ranks == rank
        scores[:, rank] = sizes[here].reshape(len(padded), -1).mean(axis=1, dtype=np.float64)
        coded[here] = np.repeat(scores[:, rank], padded.shape[1] // BUCKET)
    signed = np.where(padded == 0, np.float32(0), np.copysign(coded, padded))
    outputs = weights.shape[1]
    return SliceCodes(signed[:, :outputs], ranks[:, :outputs], scores, apart, 4, outliers)
