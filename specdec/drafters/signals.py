"""The shape of a next-token distribution, measured from its logits when somebody first asks."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np


class LogitDistribution:
    """Entropy, largest probability and margin of softmax(logits), at temperature 1.

    Args:
        logits: float32 (V,), V >= 2; kept until first use, then let go.
    """

    def __init__(self, logits: np.ndarray) -> None:
        self._logits: np.ndarray | None = logits

    @property
    def entropy(self) -> float:
        """In nats."""
        return self._measures[0]

    @property
    def top_probability(self) -> float:
        """Largest probability."""
        return self._measures[1]

    @property
    def margin(self) -> float:
        """Largest minus second largest logit."""
        return self._measures[2]

    @cached_property
    def _measures(self) -> tuple[float, float, float]:
        logits, self._logits = self._logits, None
        assert logits is not None  # only the first call gets here
        top = int(np.argmax(logits))
        shifted = logits - logits[top]
        weights = np.exp(shifted)
        total = float(np.sum(weights, dtype=np.float64))
        # H = log Z - E[l], with l relative to the largest logit. A logit of -inf has weight 0 and adds nothing.
        finite = np.where(weights > 0, shifted, np.float32(0)) if np.isinf(shifted).any() else shifted
        entropy = math.log(total) - float(np.dot(weights, finite)) / total
        shifted[top] = -np.inf
        return max(entropy, 0.0), 1.0 / total, float(-np.max(shifted))
