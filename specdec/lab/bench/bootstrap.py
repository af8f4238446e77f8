"""How far a ratio of times can be trusted: `ratio_interval`."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 1 << 20  # numbers of a table of resampled times, at most


def ratio_interval(
    plain: np.ndarray, own: np.ndarray, *, strata: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Percentile bootstrap interval (Efron and Tibshirani 1993, section 13.3) of a ratio of summed median times.

    Prompts are resampled within their task, since other prompts of these kinds might have been asked; those that are
    alone in their task are drawn among each other. For each of them the repetitions are resampled, the same ones of
    both sides, since they were measured next to each other.

    Args:
        plain: seconds of plain decoding, float64 (prompts, repetitions).
        own: the contender's, likewise.
        strata: task of each prompt, by number: int (prompts,).
        seed: of the drawing; equal seeds give equal intervals.
        resamples: how often to draw.

    Returns:
        Lower and upper bound at `LEVEL`; None for a single prompt or fewer than four times, which tell nothing of that.
    """
    prompts, repetitions = own.shape
    if prompts < 2 or own.size < 4:
        return None
    generator = np.random.default_rng(seed)
    alone = np.bincount(strata)[strata] == 1
    strata = np.where(alone, -1, strata)
    order = np.argsort(strata, kind="stable")
    plain, own, strata = plain[order], own[order], strata[order]
    first = np.searchsorted(strata, strata)  # of each prompt's task
    size = np.searchsorted(strata, strata, side="right") - first
    ratios = []
    for start in range(0, resamples, step := max(1, _CHUNK // own.size)):
        count = min(step, resamples - start)
        drawn = first + (generator.random((count, prompts)) * size).astype(int)
        of = generator.integers(0, repetitions, (count, prompts, repetitions))
        sums = [np.median(times[drawn[:, :, None], of], axis=2).sum(axis=1) for times in (plain, own)]
        ratios.append(sums[0] / sums[1])
    low, high = np.quantile(np.concatenate(ratios), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
