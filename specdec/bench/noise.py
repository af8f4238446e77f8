"""Whether the machine was quiet enough to tell anything: `Noise`, from plain decoding's own repetitions."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdec.bench.grid import PLAIN
from specdec.bench.sample import Sample

LIMIT = 0.10
# The median of |a - b| for two draws from a normal distribution of standard deviation 1: 0.6745 (its own median
# deviation) times the square root of 2.
_PAIR = 0.9539


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How much the same work varies from one time to the next.

    Attributes:
        spread: standard deviation of the logarithm of plain decoding's time over repetitions of the same answer, as a
            share (0.05: 5 %), estimated by the median difference of two repetitions, which a few stalls do not move;
            None where nothing was repeated.
        limit: spread above which nothing is said.
        pairs: pairs of repetitions that it is taken from.
    """

    spread: float | None
    limit: float = LIMIT
    pairs: int = 0

    @property
    def is_too_loud(self) -> bool:
        """Whether there is too much of it to tell anything."""
        return self.spread is not None and self.spread > self.limit


def noise(samples: Sequence[Sample], *, limit: float = LIMIT) -> Noise:
    """The noise of a run, over all its conditions."""
    times: dict[tuple[int, int], list[float]] = defaultdict(list)
    for sample in samples:
        if sample.place.contender == PLAIN:
            times[sample.place.condition, sample.place.prompt].append(sample.seconds)
    differences = [
        abs(math.log(left / right)) for one in times.values() for left, right in itertools.combinations(one, 2)
    ]
    spread = float(np.median(differences)) / _PAIR if differences else None
    return Noise(spread=spread, limit=limit, pairs=len(differences))
