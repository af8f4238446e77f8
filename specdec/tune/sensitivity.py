"""What each matrix tolerates: divergence of the draft when one unit alone runs at a lower effort.

Measured on passages of text, at places spread over them: history at verify quality, as in drafting; one draft step with
every unit at effort 1, then one for every unit and level. What is kept are sums over places, so that a measurement that
was cut short goes on where it stopped (`partial`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdec.effort import EffortSchedule
from specdec.runtimes.base import Cache, Runtime
from specdec.tune.divergence import Comparison
from specdec.tune.units import Unit

_CHUNK = 512  # tokens of text in one pass
_FULL = EffortSchedule()


@dataclass
class Sums:
    """Sums over the positions that are done.

    Attributes:
        positions: how many.
        kl: float64 (units, levels), nats.
        distance: float64 (units, levels), see `Comparison.distance`.
    """

    positions: int
    kl: NDArray[np.float64]
    distance: NDArray[np.float64]

    @classmethod
    def empty(cls, units: int, levels: int) -> Sums:
        """Nothing measured yet."""
        return cls(0, np.zeros((units, levels)), np.zeros((units, levels)))

    @property
    def mean_kl(self) -> NDArray[np.float64]:
        """(units, levels), per position."""
        return self.kl / max(1, self.positions)

    @property
    def mean_distance(self) -> NDArray[np.float64]:
        """(units, levels), per position."""
        return self.distance / max(1, self.positions)


def measure(
    runtime: Runtime,
    passages: Sequence[Sequence[int]],
    units: Sequence[Unit],
    *,
    view: str,
    levels: Sequence[float],
    places: Sequence[tuple[int, int]],
    sums: Sums,
    done: Callable[[Sums], None],
) -> None:
    """Add the places that `sums` lacks to it, in order, calling `done` after each.

    Args:
        runtime: runs the model.
        passages: token ids.
        units: what is lowered, one after the other.
        view: draft view.
        levels: efforts below 1.
        places: ascending (passage, index of a token in it) whose next-token distributions are compared.
        sums: what is there already; changed after each whole place only, so that an interrupt loses no more.
        done: told how far it is.
    """
    schedules = [[EffortSchedule(1.0, dict.fromkeys(unit.matrices, level)) for level in levels] for unit in units]
    cache, reading = runtime.new_cache(1), -1
    for passage, index in places[sums.positions :]:
        tokens = passages[passage]
        if passage != reading:
            cache, reading = runtime.new_cache(len(tokens)), passage
        advance(runtime, cache, tokens[:index])
        right = Comparison(draft_step(runtime, cache, tokens[index], _FULL, view))
        kl, distance = np.zeros_like(sums.kl), np.zeros_like(sums.distance)
        for row, of_unit in enumerate(schedules):
            for column, schedule in enumerate(of_unit):
                logits = draft_step(runtime, cache, tokens[index], schedule, view)
                kl[row, column] = right.divergence(logits)
                distance[row, column] = right.distance(logits)
        sums.kl, sums.distance, sums.positions = sums.kl + kl, sums.distance + distance, sums.positions + 1
        done(sums)


def advance(runtime: Runtime, cache: Cache, tokens: Sequence[int]) -> None:
    """Bring `cache`, which holds a prefix of `tokens`, to all of them, at verify quality."""
    while rest := tokens[cache.length :]:
        runtime.forward(rest[:_CHUNK], cache, effort=_FULL, last_only=True)


def draft_step(runtime: Runtime, cache: Cache, token: int, schedule: EffortSchedule, view: str) -> NDArray[np.float32]:
    """Logits (V,) of one draft step, which leaves the cache as it was."""
    held = cache.length
    try:
        logits: NDArray[np.float32] = runtime.forward([token], cache, effort=schedule, view=view).logits[0]
    finally:
        cache.trim(min(held, cache.length))
    return logits
