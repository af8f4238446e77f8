"""Parts of `goodput` in their plain form: everything is worked out anew in every round, and nothing is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from specdec.policies.goodput import lookup, menu, policy, trials
from specdec.policies.goodput.acceptance import _MATCH_CLASSES, LONGEST_MATCH, LogOdds, MatchAcceptance, _guessed_match
from specdec.policies.goodput.costs import CostModel, _typical
from specdec.policies.goodput.offer import Offer
from specdec.policies.goodput.ways import ways_of

from specdec.engine.policy import DraftOption


def make_plain(monkeypatch: Any) -> None:
    """Have `goodput` use the plain forms."""
    for module in (policy, menu, trials):
        monkeypatch.setattr(module, "best_length", best_length)
    monkeypatch.setattr(policy, "_plan", policy._plan.__wrapped__)
    monkeypatch.setattr(CostModel, "row", lambda _: -math.inf)
    monkeypatch.setattr(CostModel, "_guess", guessed(CostModel._guess))
    monkeypatch.setattr(Offer, "are", lambda *_: False)
    monkeypatch.setattr(Offer, "ways", lambda _, option, state: ways_of(option, state))
    monkeypatch.setattr(Offer, "by_match", by_match)
    monkeypatch.setattr(LogOdds, "means", means)
    monkeypatch.setattr(MatchAcceptance, "run", run)
    monkeypatch.setattr(MatchAcceptance, "new_text", new_text)
    monkeypatch.setattr(lookup, "ROUNDING", math.inf)  # no length is left out


def best_length(
    verify: Sequence[float], step: float, acceptance: float, rate: float, limit: int, row: float = 0.0
) -> tuple[int, float, float]:
    """All lengths, until one is a token worse than the best."""
    found = []
    chance, tokens, cost = 1.0, 1.0, verify[1]
    for k in range(1, min(limit, len(verify) - 2) + 1):
        chance *= acceptance
        tokens += chance
        cost += step + verify[k + 1] - verify[k]
        found.append((k, tokens, cost))
    if not found:
        return 0, 1.0, verify[1]
    k, tokens, cost = max(found, key=lambda one: one[1] - rate * one[2])
    return (k if tokens - rate * cost > 1.0 - rate * verify[1] else 0), tokens, cost


def guessed(original: Any) -> Any:
    """The cost of an effort that was not measured, from the measured ones, looked through one by one."""

    def guess(costs: CostModel, way: Any, effort: float) -> float:
        steps = costs._views.get(way)
        if way.view is None or way.reach.context or steps is None or not steps.costs:
            return original(costs, way, effort)  # type: ignore[no-any-return]
        known = {one: steps.costs[index] for one, index in steps.index.items()}
        below, above = [one for one in known if one <= effort], [one for one in known if one >= effort]
        if below and above:
            low, high = max(below), min(above)
            return known[low] + (known[high] - known[low]) * (effort - low) / (high - low)
        nearest = min(known, key=lambda one: abs(one - effort))
        return known[nearest] * _typical(effort) / _typical(nearest)

    return guess


def by_match(offer: Offer, matches: dict[str, int]) -> list[DraftOption]:
    """The options, those with the longest match first."""
    return sorted(offer.options, key=lambda one: -matches.get(one.drafter, 0))


def means(odds: LogOdds, efforts: Sequence[float], lean: float) -> list[float]:
    """One after the other."""
    return [odds.mean(effort, lean=lean) for effort in efforts]


def run(matches: MatchAcceptance, match: int, most: int) -> list[float]:
    """One after the other."""
    return [matches.chances[min(match + k, LONGEST_MATCH)] for k in range(most)]


def new_text(matches: MatchAcceptance) -> None:
    """All lengths, including lengths of which nothing was seen."""
    for rate, lengths in zip(matches.rates, _MATCH_CLASSES, strict=True):
        rate.kept *= 0.5
        rate.seen *= 0.5
        for length in lengths:
            matches.chances[length] = (rate.kept + 3.0 * _guessed_match(length)) / (rate.seen + 3.0)
