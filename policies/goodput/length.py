"""The most profitable draft length, when every token is kept with the same chance: `best_length`."""

from __future__ import annotations

from collections.abc import Sequence


def best_length(
    verify: Sequence[float], step: float, acceptance: float, rate: float, limit: int
) -> tuple[int, float, float]:
    """Draft length of the most profitable round, when every token is kept with the same chance.

    Args:
        verify: cost of a pass by its number of rows.
        step: cost of a draft step.
        acceptance: chance that a token is kept when those before it are.
        rate: tokens that a unit of cost is worth.
        limit: most tokens to draft.

    Returns:
        The length, and the tokens and the cost of a round with at least one drafted token (where `limit` allows it):
        with length 0 those of the least bad draft.
    """
    chance, tokens, cost = 1.0, 1.0, verify[1]
    plain = tokens - rate * cost
    length, best, best_tokens, best_cost = 0, -1e9, tokens, cost
    for k in range(1, min(limit, len(verify) - 2) + 1):
        chance *= acceptance
        tokens += chance
        cost += step + verify[k + 1] - verify[k]
        net = tokens - rate * cost
        if net > best:
            length, best, best_tokens, best_cost = k, net, tokens, cost
        elif net < best - 1.0:
            break
    return (length if best > plain else 0), best_tokens, best_cost
