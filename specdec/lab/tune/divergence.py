"""How far one row of logits is from another: Kullback-Leibler divergence, distance, and the choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Comparison:
    """Compares rows of logits with one that is taken as right.

    Args:
        logits: float32 (V,), the right ones.
    """

    def __init__(self, logits: NDArray[np.float32]) -> None:
        exact = logits.astype(np.float64)
        self.token = int(np.argmax(logits))
        self._logits = exact
        self._log_total = _log_sum(exact)
        self._probabilities = np.exp(exact - self._log_total)
        self._centred = exact - exact.mean()
        self._norm = float(np.linalg.norm(self._centred))

    def divergence(self, logits: NDArray[np.float32]) -> float:
        """KL(right || other) of the next-token distributions, in nats, at least 0."""
        other = logits.astype(np.float64)
        difference = self._logits - other
        kl = float(self._probabilities @ difference) - self._log_total + _log_sum(other)
        return max(kl, 0.0)

    def distance(self, logits: NDArray[np.float32]) -> float:
        """Length of the difference over the length of the right row, both without their mean.

        Logits are a linear image of the normed last hidden state, so this is how far that state has moved, in the
        directions that the logits layer sees.
        """
        other = logits.astype(np.float64)
        moved = float(np.linalg.norm(other - other.mean() - self._centred))
        return moved / self._norm if self._norm else 0.0


def _log_sum(logits: NDArray[np.float64]) -> float:
    top = float(logits.max())
    return top + float(np.log(np.exp(logits - top).sum()))
