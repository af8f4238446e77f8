"""The one way to time passes: from the same cache, in turns, after a warm-up: `timed` and `PassTimer`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from specdec.model.effort import Efforts, EffortSchedule, resolve_efforts
from specdec.runtimes.base import EXACT, Cache, DraftHead, Pass, Runtime, forward_one


@dataclass(frozen=True, slots=True)
class Timed:
    """A pass to time.

    Attributes:
        rows: M rows of one sequence.
        effort: of the pass.
        view: form of the weights to read.
        warm_up: run it once before it is timed, for instance because it packs a view. A runtime that compiles warms up
            every pass.
        head: tokens to score; None for all.
    """

    rows: int
    effort: float | EffortSchedule | Efforts = 1.0
    view: str = EXACT
    warm_up: bool = True
    head: DraftHead | None = None


def timed(
    runtime: Runtime,
    tokens: Sequence[int],
    cache: Cache,
    *,
    effort: float | EffortSchedule | Efforts,
    view: str = EXACT,
    head: DraftHead | None = None,
) -> tuple[Pass, float]:
    """A pass over `tokens`, and its seconds. The cache holds afterwards what it held before, also after an error."""
    efforts, held = resolve_efforts(effort, runtime.config), cache.length
    try:
        start_s = time.perf_counter()
        result = forward_one(runtime, tokens, cache, effort=efforts, view=view, head=head)
        seconds = time.perf_counter() - start_s
    finally:
        cache.trim(min(held, cache.length))
    return result, seconds


class PassTimer:
    """Times several kinds of passes that take turns, so that whatever slows the machine down slows all of them.

    Args:
        runtime: runs the passes.
        cache: context of every pass; its content does not change.
        tokens: rows of the passes, at least as many as the longest one.
        passes: what to time.

    Attributes:
        seconds: for each pass, its times so far, one a round.
    """

    def __init__(self, runtime: Runtime, cache: Cache, tokens: Sequence[int], passes: Sequence[Timed]) -> None:
        self.seconds: list[list[float]] = [[] for _ in passes]
        self._runtime, self._cache, self._tokens, self._passes = runtime, cache, tokens, passes

    def warm_up(self) -> None:
        """Run, untimed, the passes that need it."""
        for one in self._passes:
            if one.warm_up or self._runtime.info.compiles:
                self._run(one)

    def round(self) -> None:
        """Time every pass once."""
        for one, seconds in zip(self._passes, self.seconds, strict=True):
            seconds.append(self._run(one))

    def run(self, rounds: int, *, budget_s: float | None = None) -> list[list[float]]:
        """Warm up and time up to `rounds` rounds: no further one begins after `budget_s` seconds.

        Returns:
            For each pass its seconds, at least one. The minimum suits a measurement of few rounds, since other work on
            the machine only adds time; a lower quartile or median suits one of many.
        """
        start_s = time.perf_counter()
        self.warm_up()
        for _ in range(rounds):
            self.round()
            if budget_s is not None and time.perf_counter() - start_s > budget_s:
                break
        return self.seconds

    def _run(self, one: Timed) -> float:
        tokens = self._tokens[: one.rows]
        return timed(self._runtime, tokens, self._cache, effort=one.effort, view=one.view, head=one.head)[1]
