"""Whether the machine was quiet enough to tell anything: `Noise`, from plain decoding's own repetitions."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdec.lab.bench.grid import PLAIN
from specdec.lab.bench.sample import Sample

LIMIT = 0.05
# The median of |a - b| for two draws from a normal distribution of standard deviation 1: 0.6745 (its own median
# deviation) times the square root of 2.
_PAIR = 0.9539
# Standard deviation of the median of N draws from it (order statistics; sqrt(pi / 2 n) from 7 on, 3 % off there).
_MEDIAN = {1: 1.0, 2: 0.7071, 3: 0.6698, 4: 0.5460, 5: 0.5356, 6: 0.4635}


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How much the same work varies from one time to the next, and what that leaves to tell.

    Attributes:
        spread: standard deviation of the logarithm of plain decoding's time over repetitions of the same answer, as a
            share (0.05: 5 %), estimated by the median difference of two repetitions, which a few stalls do not move;
            None where nothing was repeated.
        error: standard error that the spread alone makes in a speed-up over all prompts; of several conditions, the
            largest.
        limit: error above which nothing is said.
        pairs: pairs of repetitions that the spread is taken from.
    """

    spread: float | None
    error: float | None
    limit: float = LIMIT
    pairs: int = 0

    @property
    def is_too_loud(self) -> bool:
        """Whether there is too much of it to tell anything."""
        return self.error is not None and self.error > self.limit


def noise(samples: Sequence[Sample], *, limit: float = LIMIT) -> Noise:
    """The noise of a run."""
    times: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if sample.place.contender == PLAIN:
            times[sample.place.condition][sample.place.prompt].append(sample.seconds)
    answers = [one for prompts in times.values() for one in prompts.values()]
    differences = [abs(math.log(left / right)) for one in answers for left, right in itertools.combinations(one, 2)]
    if not differences:
        return Noise(spread=None, error=None, limit=limit)
    spread = float(np.median(differences)) / _PAIR
    error = max(spread * _leverage(list(prompts.values())) for prompts in times.values())
    return Noise(spread=spread, error=error, limit=limit, pairs=len(differences))


def _leverage(answers: Sequence[Sequence[float]]) -> float:
    """Standard error of a ratio of two sums of median times, where a single time has a standard deviation of 1 (as a
    share of it): both sides have it, and each answer weighs by its time."""
    medians = np.array([np.median(one) for one in answers])
    deviations = [_MEDIAN.get(len(one), math.sqrt(math.pi / 2 / len(one))) for one in answers]
    return math.sqrt(2.0) * float(np.linalg.norm(medians / medians.sum() * deviations))
