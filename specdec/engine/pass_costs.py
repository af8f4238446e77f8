"""What passes over several rows cost, from those that ran: `PassCosts`. It says how much of a prompt joins a pass."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from specdec.runtimes.base import MAX_PASS_ROWS

# A pass that reads a piece of a prompt may take so many passes without it, or so long: whichever is more.
_STRETCH, _LEAST_S = 2.0, 0.25
_FIRST_ROWS = 32  # of a prompt beside others while nothing was measured
_MEMORY = 0.8  # weight of what was known against a new observation
_CLIP = 3.0  # factor by which one observation may differ: a machine that stalls is not a cost


class PassCosts:
    """Seconds of exact passes by their number of rows, in classes that double, interpolated between."""

    def __init__(self) -> None:
        self._seconds: dict[int, tuple[float, float]] = {}  # by class: mean rows and mean seconds

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a pass."""
        number = rows.bit_length()
        known = self._seconds.get(number)
        if known is None:
            self._seconds[number] = (float(rows), seconds)
            return
        mean_rows, mean_s = known
        seconds = min(max(seconds, mean_s / _CLIP), mean_s * _CLIP)
        weight = _MEMORY
        self._seconds[number] = (
            weight * mean_rows + (1 - weight) * rows,
            weight * mean_s + (1 - weight) * seconds,
        )

    def seconds(self, rows: int) -> float | None:
        """Expected seconds of a pass; None while fewer than two sizes were seen."""
        points = sorted(self._seconds.values())
        if len(points) < 2:
            return None
        at = [point[0] for point in points]
        right = min(max(bisect_left(at, rows), 1), len(points) - 1)
        (low, low_s), (high, high_s) = points[right - 1], points[right]
        slope = max(0.0, (high_s - low_s) / (high - low)) if high > low else 0.0
        return max(0.0, low_s + slope * (rows - low))

    def prompt_rows(self, decoding_rows: int) -> int:
        """Most rows of prompts that may join `decoding_rows` rows of others, at least 1."""
        alone_s = self.seconds(decoding_rows)
        if alone_s is None:
            return _FIRST_ROWS
        limit_s = max(_STRETCH * alone_s, _LEAST_S)
        sizes = range(decoding_rows + 1, MAX_PASS_ROWS + 1)
        return max(1, bisect_right(sizes, limit_s, key=lambda rows: self.seconds(rows) or 0.0))
