"""Sharing out effort: the least divergence for a given mean effort, from what each unit tolerates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_STEP = 0.025  # efforts that are considered lie this far apart
_LEAST_SHARE = 0.02  # of a divergence that is taken to be more than rounding, however little is left
_LEAST_KL = 1e-9  # nats; what is less is noise, and its logarithm would lead the search astray


def net_of_rounding(kl: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divergences without what rounding alone does.

    A view that rounds its activations rounds them differently as soon as a single input is left out, so a unit's
    divergence does not go to 0 as its effort nears 1: what is left at the last level is noise of the reference's own
    kind, no loss. Without taking it off, small matrices look as if they needed effort 1.

    Args:
        kl: (units, levels + 1), the last one at an effort just below 1.

    Returns:
        (units, levels).
    """
    return np.maximum(kl[:, :-1] - kl[:, -1:], _LEAST_SHARE * kl[:, :-1])


def allocate(
    kl: NDArray[np.float64],
    *,
    levels: Sequence[float],
    multiplications: NDArray[np.float64],
    cost_rate: NDArray[np.float64],
    mean: float,
) -> NDArray[np.float64]:
    """Efforts by unit that keep the sum of divergences small at a mean effort.

    For small independent errors the divergences of single units add up (KL is quadratic in the error, and the mixed
    terms average out). Then the best allocation gives every unit the effort that minimises
    `kl(e) + price * cost_rate * multiplications * e` at one common price, and the price decides the mean (Lagrange; as
    Shoham & Gersho 1988 share out bits).

    Args:
        kl: (units, levels) divergence with one unit alone at each level.
        levels: ascending efforts below 1, at least two; at effort 1 the divergence is 0.
        multiplications: (units,) at effort 1; they weigh in the mean.
        cost_rate: (units,) cost of a multiplication, in any unit.
        mean: wanted mean effort in (0, 1].

    Returns:
        (units,) efforts from the lowest level to 1, their mean as near to `mean` as one step of one unit allows; the
        lowest level everywhere when `mean` is below it.
    """
    grid = np.append(np.arange(levels[0], 1.0 - _STEP / 2, _STEP), 1.0)
    curves = np.array([tolerance_curve(row, levels, grid) for row in kl])
    costs = (cost_rate * multiplications)[:, None] * grid
    share = multiplications / multiplications.sum()
    low, high = 1e-15, 1e15  # of the price, far beyond any ratio of nats to cost
    costs /= costs.sum()
    for _ in range(200):
        price = (low * high) ** 0.5
        efforts = grid[np.argmin(curves + price * costs, axis=1)]
        low, high = (price, high) if efforts @ share > mean else (low, price)
    efforts = grid[np.argmin(curves + high * costs, axis=1)]
    return _topped_up(efforts, grid, curves, costs, share, mean)


def tolerance_curve(kl: NDArray[np.float64], levels: Sequence[float], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divergence at the efforts of `grid`: a power of the share left out (1 - effort) between any two levels, which is
    0 at effort 1; and nowhere rising, whatever the noise."""
    measured = np.maximum.accumulate(np.maximum(kl, _LEAST_KL)[::-1])  # by falling effort
    left_out = np.log1p(-np.asarray(levels))[::-1]
    logs = np.log(measured)
    inside = grid < 1
    x = np.log1p(-grid[inside])
    curve = np.zeros(len(grid))
    # Beyond the highest level the last power goes on, at least a straight line to 0.
    slope = max(1.0, (logs[1] - logs[0]) / (left_out[1] - left_out[0]))
    beyond = logs[0] + slope * (x - left_out[0])
    curve[inside] = np.exp(np.where(x < left_out[0], beyond, np.interp(x, left_out, logs)))
    return curve


def _topped_up(
    efforts: NDArray[np.float64],
    grid: NDArray[np.float64],
    curves: NDArray[np.float64],
    costs: NDArray[np.float64],
    share: NDArray[np.float64],
    mean: float,
) -> NDArray[np.float64]:
    """Spend what is left under `mean`, on the step that lowers divergence most for its cost, again and again."""
    index = np.searchsorted(grid, efforts - _STEP / 4)
    rows = np.arange(len(index))
    while True:
        up = np.minimum(index + 1, len(grid) - 1)
        spare = mean - grid[index] @ share
        fits = (up > index) & ((grid[up] - grid[index]) * share <= spare + 1e-12)
        if not fits.any():
            return np.asarray(grid[index])
        gain = curves[rows, index] - curves[rows, up]
        price = np.where(fits, costs[rows, up] - costs[rows, index], np.inf)
        best = int(np.argmax(np.where(fits, gain / price, -np.inf)))
        index[best] += 1
