"""The most profitable draft length, when every token is kept with the same chance: `best_length`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import sub

ROUNDING = 1e-9  # of sums: far more than they are off by


def least_row(verify: Sequence[float]) -> float:
    """The least that a further row of a pass costs, by the cost of a pass by its number of rows."""
    least: float = min(map(sub, verify[2:], verify[1:-1]))
    return least


def best_length(
    verify: Sequence[float], step: float, acceptance: float, rate: float, limit: int, row: float = -math.inf
) -> tuple[int, float, float]:
    """Draft length of the most profitable round, when every token is kept with the same chance.

    Args:
        verify: cost of a pass by its number of rows.
        step: cost of a draft step.
        acceptance: chance that a token is kept when those before it are, at most 1.
        rate: tokens that a unit of cost is worth.
        limit: most tokens to draft.
        row: `least_row` of `verify`. It saves looking at lengths that cannot pay, and changes no result.

    Returns:
        The length, and the tokens and the cost of a round with at least one drafted token (where `limit` allows it):
        with length 0 those of the least bad draft.
    """
    chance, tokens, cost = 1.0, 1.0, verify[1]
    plain = tokens - rate * cost
    length, best, best_tokens, best_cost = 0, -1e9, tokens, cost
    pays_from, before = rate * (step + row) - ROUNDING, cost
    for number, after in enumerate(verify[2 : limit + 2], 1):
        chance *= acceptance
        tokens += chance
        cost += step + after - before
        before = after
        net = tokens - rate * cost
        if net > best:
            length, best, best_tokens, best_cost = number, net, tokens, cost
        elif net < best - 1.0:
            break
        if chance < pays_from:  # nor will any later token bring what it costs
            break
    return (length if best > plain else 0), best_tokens, best_cost
