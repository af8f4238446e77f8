"""The shape of a next-token distribution, measured from its logits when somebody first asks."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np


class LogitDistribution:
    """Entropy, largest probability and margin of softmax(logits), at temperature 1.

    Args:
        logits: float32 (V,), V >= 2; kept as long as this object is.
    """

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    @property
    def entropy(self) -> float:
        """In nats."""
        return self._shape[0]

    @property
    def top_probability(self) -> float:
        """Largest probability."""
        return self._shape[1]

    @cached_property
    def margin(self) -> float:
        """Largest minus second largest logit; costs a fraction of what the others do."""
        logits = self._logits
        top = int(logits.argmax())
        # Between passes that stream gigabytes, code that has not run since the last one costs more than the work that
        # it does: this takes the one reduction that the sampler has just used.
        below, above = logits[:top], logits[top + 1 :]
        seconds = [float(part[part.argmax()]) for part in (below, above) if len(part)]
        return float(logits[top]) - max(seconds)

    @cached_property
    def _shape(self) -> tuple[float, float]:
        """Entropy and largest probability."""
        top = int(np.argmax(self._logits))
        shifted = self._logits - self._logits[top]
        weights = np.exp(shifted)
        total = float(np.sum(weights, dtype=np.float64))
        # H = log Z - E[l], with l relative to the largest logit. A logit of -inf has weight 0 and adds nothing.
        finite = np.where(weights > 0, shifted, np.float32(0)) if np.isinf(shifted).any() else shifted
        entropy = math.log(total) - float(np.dot(weights, finite)) / total
        return max(entropy, 0.0), 1.0 / total
