"""What each matrix tolerates: divergence of the draft when one unit alone runs at a lower effort.

Measured on passages of text, at places spread over them: history at verify quality, as in drafting; one draft step with
every unit at effort 1, then one for every unit and level. Results go into a journal as they come, so that a measurement
that was cut short goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.lab.journal import Journal
from specdec.lab.tune.divergence import Comparison
from specdec.lab.tune.units import Unit
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import Cache, Runtime, forward_one

_CHUNK = 512  # tokens of text in one pass
_FULL = EffortSchedule()


Row = tuple[list[float], list[float]]  # divergence and distance of one unit at one place, by level


class Sums:
    """Sums over what is done: place by place, and unit by unit within a place.

    Args:
        journal: results by their number; what it holds is not measured again.
        units: number of units.
        levels: number of levels.

    Attributes:
        done: pairs of a place and a unit that are done.
        kl: float64 (units, levels), nats.
        distance: float64 (units, levels), see `Comparison.distance`.
    """

    def __init__(self, journal: Journal[Row], units: int, levels: int) -> None:
        self._journal, self.done = journal, 0
        self.kl: NDArray[np.float64] = np.zeros((units, levels))
        self.distance: NDArray[np.float64] = np.zeros((units, levels))
        while (row := journal.results.get(str(self.done))) is not None:
            self._count(row)

    def add(self, kl: Sequence[float], distance: Sequence[float]) -> None:
        """Count the next unit: its divergence and distance at each level.

        Raises:
            InvalidArgumentError: the journal cannot be written.
        """
        name = str(self.done)
        self._journal.add(name, [[*map(float, kl)], [*map(float, distance)]])
        self._count(self._journal.results[name])

    def mean(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(units, levels) of `kl` or `distance`, per place; for sums over whole places."""
        return totals / max(1, self.done // len(totals))

    def close(self, *, remove: bool) -> None:
        """Close the journal; `remove` deletes it."""
        self._journal.close(remove=remove)

    def _count(self, row: Row) -> None:
        unit = self.done % len(self.kl)
        self.kl[unit] += row[0]
        self.distance[unit] += row[1]
        self.done += 1


def open_sums(path: Path, settings: Mapping[str, Any], *, units: int, levels: int, restart: bool = False) -> Sums:
    """The sums that a file holds for these settings; empty if it holds none, or sums of other settings.

    Raises:
        InvalidArgumentError: the file cannot be read or written.
    """

    def decode(value: Any) -> Row:
        kl, distance = ([float(one) for one in part] for part in value)
        if not len(kl) == len(distance) == levels or not np.isfinite([kl, distance]).all():
            raise ValueError
        return kl, distance

    return Sums(Journal(path, "specdec tune", settings, decode=decode, restart=restart), units, levels)


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
    """Add what `sums` lacks to it, place by place and unit by unit, calling `done` after each unit.

    Args:
        runtime: runs the model.
        passages: token ids.
        units: what is lowered, one after the other.
        view: draft view.
        levels: efforts below 1.
        places: ascending (passage, index of a token in it) whose next-token distributions are compared.
        sums: what is there already; an interrupt leaves it as after the last whole unit.
        done: called after each unit.
    """
    schedules = [[EffortSchedule(1.0, dict.fromkeys(unit.matrices, level)) for level in levels] for unit in units]
    cache, reading = runtime.new_cache(1), -1
    for passage, index in places[sums.done // len(units) :]:
        tokens = passages[passage]
        if passage != reading:
            cache, reading = runtime.new_cache(len(tokens)), passage
        advance(runtime, cache, tokens[:index])
        right = Comparison(draft_step(runtime, cache, tokens[index], _FULL, view))
        for of_unit in schedules[sums.done % len(units) :]:
            rows = [draft_step(runtime, cache, tokens[index], schedule, view) for schedule in of_unit]
            sums.add([right.divergence(row) for row in rows], [right.distance(row) for row in rows])
            done(sums)


def advance(runtime: Runtime, cache: Cache, tokens: Sequence[int]) -> None:
    """Bring `cache`, which holds a prefix of `tokens`, to all of them, at verify quality."""
    while rest := tokens[cache.length :]:
        forward_one(runtime, rest[:_CHUNK], cache, effort=_FULL, logits="last")


def draft_step(runtime: Runtime, cache: Cache, token: int, schedule: EffortSchedule, view: str) -> NDArray[np.float32]:
    """Logits (V,) of one draft step, which leaves the cache as it was."""
    held = cache.length
    try:
        logits: NDArray[np.float32] = forward_one(runtime, [token], cache, effort=schedule, view=view).logits[0]
    finally:
        cache.trim(min(held, cache.length))
    return logits
