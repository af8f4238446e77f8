"""The shape of a next-token distribution, computed from its logits on first use."""

from __future__ import annotations

import math

import numpy as np


class LogitDistribution:
    """Entropy, largest probability and margin of softmax(logits), at temperature 1.

    Args:
        logits: float32 (V,), V >= 2; kept as long as this object is.
        top: index of the largest logit, where it is known.
    """

    __slots__ = ("_logits", "_margin", "_shape", "_top")

    def __init__(self, logits: np.ndarray, top: int | None = None) -> None:
        self._logits, self._top = logits, top
        self._margin: float | None = None
        self._shape: tuple[float, float] | None = None

    @property
    def entropy(self) -> float:
        """In nats."""
        return (self._shape or self._measure())[0]

    @property
    def top_probability(self) -> float:
        """Largest probability."""
        return (self._shape or self._measure())[1]

    @property
    def margin(self) -> float:
        """Largest minus second largest logit; costs a fraction of what the others do."""
        if self._margin is None:
            logits, top = self._logits, self._top
            if top is None:
                top = int(logits.argmax())
            # Code that has not run since the last pass costs more than what it does: this is what the sampler ran.
            below, above = logits[:top], logits[top + 1 :]
            second = below.item(below.argmax()) if top else -math.inf
            if top + 1 < len(logits):
                second = max(second, above.item(above.argmax()))
            self._margin = logits.item(top) - second
        return self._margin

    def _measure(self) -> tuple[float, float]:
        """Entropy and largest probability."""
        top = int(self._logits.argmax()) if self._top is None else self._top
        shifted = self._logits - self._logits[top]
        weights = np.exp(shifted)
        total = float(np.sum(weights, dtype=np.float64))
        # H = log Z - E[l], with l relative to the largest logit. A logit of -inf has weight 0 and adds nothing.
        finite = np.where(weights > 0, shifted, np.float32(0)) if np.isinf(shifted).any() else shifted
        entropy = math.log(total) - float(np.dot(weights, finite)) / total
        shape = self._shape = max(entropy, 0.0), 1.0 / total
        return shape
