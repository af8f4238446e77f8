"""What a round with a drafter that runs no model is expected to bring, from the length of the match that it found."""

from __future__ import annotations

from specdec.policies.goodput.acceptance import LONGEST_MATCH
from specdec.policies.goodput.costs import MOST_ROWS
from specdec.policies.goodput.length import ROUNDING
from specdec.policies.goodput.prospect import Prospect, Situation
from specdec.policies.goodput.ways import Way

from specdec.engine.policy import DraftOption, RoundState


def lookup_prospect(now: Situation, option: DraftOption, *, longest: int) -> Prospect | None:
    """The prospect of a lookup; None when it has nothing to propose, or nothing that pays.

    Args:
        now: before the round.
        option: the lookup.
        longest: most tokens that it may draft.
    """
    match = match_length(option.drafter, now.state, now.last)
    if not match:
        return None
    acceptance = now.learnt.match(option.drafter)
    verify, rate = now.verify, now.rate
    chance, tokens, gain = 1.0, 1.0, 0.0
    length, best_tokens, best_gain = 0, 1.0, 0.0
    most = min(longest, now.state.max_draft_tokens, MOST_ROWS - 1, option.most_tokens or MOST_ROWS)
    pays_from, before = rate * now.row - ROUNDING, verify[1]
    for number, (kept, after) in enumerate(zip(acceptance.run(match, most), verify[2:], strict=False), 1):
        chance *= kept
        tokens += chance
        gain += chance - rate * (after - before)
        before = after
        if gain > best_gain:
            length, best_tokens, best_gain = number, tokens, gain
        if chance < pays_from:  # nor will any later token bring what its row costs
            break
    if not length:
        return None
    way = Way(option.drafter, None)
    cost = verify[length + 1] + now.learnt.costs.draft(way, 0.0)
    return Prospect(
        rate=rate, tokens=best_tokens, cost=cost, option=option, way=way, effort=1.0, length=length, match=match,
        acceptance=acceptance, verify=verify,
    )  # fmt: skip


def match_length(drafter: str, state: RoundState, last: Prospect) -> int:
    """Length of the match that a lookup has found. One that cannot tell is taken to know one token, and where its last
    round was kept whole as many more."""
    found = state.matches.get(drafter)
    if found is not None:
        return found
    if last.kept_whole and last.option is not None and last.option.drafter == drafter:
        return min(last.match + last.kept_whole + 1, LONGEST_MATCH)
    return 1
