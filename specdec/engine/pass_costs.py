"""What passes over several rows cost, from those that ran: `PassCosts`. It says how much of a prompt joins a pass."""

from __future__ import annotations

import math
from bisect import bisect_left

from specdec.runtimes.base import MAX_PASS_ROWS

# Longest pass with a piece of a prompt: this multiple of a pass without it, or this time, whichever is more.
_STRETCH, _LEAST_S = 2.0, 0.25
_ALONE_S = 1.0  # most seconds of a pass over prompts alone: new requests and closed ones wait for its end
_FIRST_ROWS = 32  # of a prompt in a shared pass before anything was measured
_GROWTH = 2  # most that a piece may be longer than all before, in rows: estimates reach no further
_MEMORY = 0.8  # weight of what was known against a new observation
_CLIP = 3.0  # factor by which one observation may differ: a machine that stalls is not a cost


class PassCosts:
    """Seconds of exact passes: of rows that decode, by their number, and of rows of prompts in the same pass.

    Decoding rows have a mean for each class of numbers, which double, interpolated between. A row of a prompt costs
    what it multiplies, and for each token before it what attention reads: two numbers, by least squares that forget.
    """

    def __init__(self) -> None:
        self._decoding: dict[int, tuple[float, float]] = {}  # by class: mean rows and mean seconds
        self._prompt = _LeastSquares()
        self._longest = 0  # rows of prompts in a pass so far

    def observe(self, seconds: float, *, rows: int, prompts: list[tuple[int, int]]) -> None:
        """Learn from a pass.

        Args:
            seconds: that it took.
            rows: of sequences that decode.
            prompts: of each prompt that it read a piece of, rows and tokens before them.
        """
        if not prompts:
            self._observe_decoding(rows, seconds)
            return
        count = sum(one for one, _ in prompts)
        work = sum(_attended(one, context) for one, context in prompts)
        beside_s = self.seconds(max(rows, 1)) or 0.0  # a pass over prompts alone reads the weights as well
        self._prompt.observe(count, work, max(0.0, seconds - beside_s), floor=0.1 * seconds)
        self._longest = max(self._longest, count)

    def seconds(self, rows: int) -> float | None:
        """Expected seconds of a pass of rows that decode; None before any was seen."""
        points = sorted(self._decoding.values())
        if not points:
            return None
        if len(points) == 1:
            return points[0][1]
        at = [point[0] for point in points]
        right = min(max(bisect_left(at, rows), 1), len(points) - 1)
        (low, low_s), (high, high_s) = points[right - 1], points[right]
        slope = max(0.0, (high_s - low_s) / (high - low)) if high > low else 0.0
        return max(0.0, low_s + slope * (rows - low))

    def share_of_prompts(self, rows: int, prompts: list[tuple[int, int]]) -> float:
        """Share of a pass's time that pieces of prompts take in addition to `rows` that decode; see `observe`."""
        decoding_s = self.seconds(rows)
        count = sum(one for one, _ in prompts)
        if decoding_s is None or not self._prompt.is_known:
            return count / (count + rows)
        prompts_s = sum(self._prompt.seconds(one, context) for one, context in prompts)
        return prompts_s / (prompts_s + decoding_s)

    def room(self, rows: int) -> Room:
        """Rows of prompts that a pass may hold in addition to `rows` that decode."""
        if not rows:
            alone_s = _ALONE_S if self._prompt.is_known else math.inf
            return Room(self._prompt, alone_s, MAX_PASS_ROWS)
        if not self._prompt.is_known:
            return Room(self._prompt, math.inf, _FIRST_ROWS)
        decoding_s = self.seconds(rows)
        if decoding_s is None:  # rows of prompts are as much work
            seconds = _LEAST_S - self._prompt.seconds(rows, 0)
        else:
            seconds = max(_STRETCH * decoding_s, _LEAST_S) - decoding_s
        return Room(self._prompt, seconds, max(_FIRST_ROWS, _GROWTH * self._longest))

    def _observe_decoding(self, rows: int, seconds: float) -> None:
        number = rows.bit_length()
        known = self._decoding.get(number)
        if known is None:
            self._decoding[number] = (float(rows), seconds)
            return
        mean_rows, mean_s = known
        seconds = min(max(seconds, mean_s / _CLIP), mean_s * _CLIP)
        weight = _MEMORY
        self._decoding[number] = (
            weight * mean_rows + (1 - weight) * rows,
            weight * mean_s + (1 - weight) * seconds,
        )


class Room:
    """What is left of a pass for prompts: seconds, and rows.

    Args:
        costs: of rows of prompts.
        seconds: that they may take.
        rows: that there may be.
    """

    def __init__(self, costs: _LeastSquares, seconds: float, rows: int) -> None:
        self._costs, self._seconds, self.rows = costs, seconds, rows
        self._is_used = False

    def half(self) -> Room:
        """Half of it."""
        return Room(self._costs, self._seconds / 2, (self.rows + 1) // 2)

    def fits(self, context: int, most: int) -> int:
        """How many rows fit after `context` tokens of their prompt, at most `most`; at least 1 while none is in."""
        most = max(0, min(most, self.rows))
        if not math.isfinite(self._seconds):
            return most
        return min(most, max(self._costs.rows(self._seconds, context), 0 if self._is_used else 1))

    def take(self, context: int, rows: int) -> None:
        """Use some of it."""
        self._is_used = self._is_used or rows > 0
        self.rows -= rows
        self._seconds -= self._costs.seconds(rows, context)


class _LeastSquares:
    """Seconds of a piece of a prompt: a x rows + b x tokens attended to, fitted to what was seen lately."""

    def __init__(self) -> None:
        self._row_s = self._token_s = 0.0
        self._sums = [0.0] * 5  # of rows^2, rows x work, work^2, rows x seconds, work x seconds, all over seconds^2

    @property
    def is_known(self) -> bool:
        """Whether anything was seen."""
        return self._row_s > 0

    def observe(self, rows: int, work: float, seconds: float, *, floor: float) -> None:
        """A piece took `seconds` of a pass; relative errors count, of at least `floor` seconds."""
        expected = rows * self._row_s + work * self._token_s
        if self.is_known:
            seconds = min(max(seconds, expected / _CLIP), expected * _CLIP)
        scale = max(seconds, floor, 1e-9)
        x, y, z = rows / scale, work / scale, seconds / scale
        new = (x * x, x * y, y * y, x * z, y * z)
        self._sums = [_MEMORY * old + one for old, one in zip(self._sums, new, strict=True)]
        xx, xy, yy, xz, yz = self._sums
        determinant = xx * yy - xy * xy
        if determinant > 1e-3 * xx * yy:
            row_s, token_s = (xz * yy - yz * xy) / determinant, (yz * xx - xz * xy) / determinant
            if row_s > 0 and token_s >= 0:
                self._row_s, self._token_s = row_s, token_s
                return
        # Pieces that are all alike say one thing only: the ratio of the two stays.
        together = xx + 2 * self._ratio * xy + self._ratio**2 * yy
        self._row_s = max((xz + self._ratio * yz) / together, 1e-12)
        self._token_s = self._ratio * self._row_s

    @property
    def _ratio(self) -> float:
        return self._token_s / self._row_s if self._row_s else 0.0

    def seconds(self, rows: int, context: int) -> float:
        """Expected seconds of `rows` after `context` tokens."""
        return rows * self._row_s + _attended(rows, context) * self._token_s

    def rows(self, seconds: float, context: int) -> int:
        """How many rows after `context` tokens take `seconds`."""
        a, b = self._token_s / 2, self._row_s + context * self._token_s
        if seconds <= 0 or b <= 0:
            return 0
        root = b if a <= 0 else (b + math.sqrt(b * b + 4 * a * seconds)) / 2
        return int(min(seconds / root, MAX_PASS_ROWS))


def _attended(rows: int, context: int) -> float:
    """Tokens that the rows of a piece look back on, all together."""
    return rows * (context + rows / 2)
