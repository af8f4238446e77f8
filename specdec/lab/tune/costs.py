"""What passes cost on this machine: seconds of draft steps by schedule, and of exact passes by rows."""

from __future__ import annotations

from collections.abc import Sequence

from specdec.lab.tune.sensitivity import advance
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import Cache, Runtime
from specdec.runtimes.timing import PassTimer, Timed

VERIFY_ROWS = (1, 2, 3, 5, 9)  # rows of exact passes that are timed


class StepTimer:
    """Times passes after one text.

    Of each pass the lower quartile counts: other work on the machine only adds time, and the fastest pass of all may be
    a fluke of the clock.

    Args:
        runtime: runs the model.
        tokens: context of every timed pass, followed by the tokens that it reads: longer than the most rows timed.
        repeats: passes of each kind.
    """

    def __init__(self, runtime: Runtime, tokens: Sequence[int], *, repeats: int) -> None:
        self._runtime, self._repeats = runtime, repeats
        held = len(tokens) - max(VERIFY_ROWS)
        self._next = list(tokens[held:])
        self._cache: Cache = runtime.new_cache(len(tokens))
        advance(runtime, self._cache, tokens[:held])

    def exact(self) -> dict[int, float]:
        """Seconds of an exact pass at effort 1, by its rows."""
        return dict(zip(VERIFY_ROWS, self._quartiles([Timed(rows) for rows in VERIFY_ROWS]), strict=True))

    def drafts(self, schedules: Sequence[EffortSchedule], view: str) -> list[float]:
        """Seconds of a draft step with each schedule."""
        return self._quartiles([Timed(1, schedule, view) for schedule in schedules])

    def _quartiles(self, passes: Sequence[Timed]) -> list[float]:
        taken = PassTimer(self._runtime, self._cache, self._next, passes).run(self._repeats)
        return [sorted(seconds)[len(seconds) // 4] for seconds in taken]


def best_speedup(agreement: float, draft_s: float, verify_s: dict[int, float]) -> tuple[float, int]:
    """Expected speed over plain decoding, and the draft length that gives it; (1, 0) when drafting does not pay.

    A round of k drafts at cost c each and a verify pass of k + 1 rows emits `(1 - a^(k+1)) / (1 - a)` tokens, when each
    is kept with chance a where those before it are (Leviathan et al. 2211.17192, section 3.1).
    """
    best = (1.0, 0)
    for length in range(1, 17):
        tokens = sum(agreement**power for power in range(length + 1))
        speed = tokens * verify_s[1] / (length * draft_s + rows_seconds(verify_s, length + 1))
        best = max(best, (speed, length))
    return best


def rows_seconds(verify_s: dict[int, float], rows: int) -> float:
    """Seconds of a pass over `rows`, on the straight lines between and beyond the numbers that were timed."""
    known = sorted(verify_s)
    upper = next((index for index, count in enumerate(known) if count >= rows), len(known) - 1)
    upper = max(upper, 1)
    low, high = known[upper - 1], known[upper]
    slope = (verify_s[high] - verify_s[low]) / (high - low)
    return verify_s[low] + max(0.0, slope) * (rows - low)
