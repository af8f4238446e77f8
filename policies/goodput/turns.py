"""Rounds that the runtime drafts and verifies by itself, several in a pass: whether they pay, and how many to ask for.

Where such a turn costs little more than a plain step, a few tokens kept pay for it. The number of tokens kept differs
from text to text far more than the cost of a turn. So a text begins with plain steps; where its end occurred before, a
few turns are tried, and as long as they pay, more of them follow. A text that goes on without such a match is tried
now and then as well, for as many turns as may be lost by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.policies.goodput.acceptance import LONGEST_MATCH, MatchAcceptance
from specdec.policies.goodput.learnt import Learnt
from specdec.policies.goodput.offer import Offer
from specdec.policies.goodput.prospect import Prospect, Situation
from specdec.policies.goodput.turn_results import TurnResults
from specdec.policies.goodput.ways import Way

from specdec.engine.policy import RoundState

_MARGIN = 1.03  # tokens for each dense step, over the going rate, from which turns pay
# The same for what a turn costs more than a plain step, added where plain steps show what turns would have kept:
# waiting costs less than vain turns do.
_RISK = 0.3
_FIRST, _MOST = 4, 16  # turns of a pass where they have paid lately: at first, and at most
_FEW = 2  # turns of a pass where only a match promises a gain, of at least `_LONG` tokens
_LONG = 4.0
_LAUNCH = 0.3  # dense steps of the host's time for such a pass
QUIET = 2  # rounds of an answer before the first decision, which takes the host's time: many answers are that short
_TRIED = 4  # turns of a pass that is run to find out
_TRIED_FROM = 28  # tokens of an answer before the first such pass
_SHARE = 0.02  # dense steps that turns may have lost for each token of the answer, with the next trial's expected loss
NEVER = 1 << 30  # no text, and no match, is that long


@dataclass(slots=True)
class TurnPlanner:
    """Decides for one generation whether turns of the runtime's own pay, of what width, and how many of them.

    Attributes:
        results: of its turns; None before the first decision, and where the runtime drafts none.
        due: position from which a trial is affordable and could show a gain.
    """

    results: TurnResults | None = None
    due: int = NEVER
    _begun: int = -1  # position at the first decision
    _lost: float = 0.0  # dense steps that turns have cost, less their tokens
    _last: int = 0  # turns of the last pass, where they paid
    _sees: bool = False  # plain steps show what turns would have kept

    def choose(self, now: Situation, best: Prospect) -> Prospect:
        """Turns where they are better than `best`, or a trial of them; else `best`."""
        if now.turns is None:
            self._last = 0
            return best
        if self._begun < 0:
            self._begun = now.state.position
            results_of(now.learnt, now.turns.drafter).begin(self._begun)
        turns = self._prospect(now)
        pays = turns is not None and turns.tokens > _MARGIN * now.rate * turns.cost and turns.net > best.net
        if turns is not None and pays and _pays_back(now, turns.tokens, turns.cost):
            self._last = turns.turns if turns.turns > _FEW else 0
            return turns
        self._last = 0
        trial = None if turns is None or best.option is not None else self._trial(now)
        if trial is None:
            return best
        self._last = trial.turns // 2
        return trial

    def miss(self, learnt: Learnt, offer: Offer, state: RoundState) -> bool:
        """Count what turns would have kept in place of the plain steps since the last plan; returns whether they pay by
        that, at the costs that are known."""
        option = offer.turns(state)
        if option is None:
            return False
        self._sees, results = True, results_of(learnt, option.drafter)
        results.miss(state.missed)
        seen = results.costs
        return any(width in seen and results.tokens(place) > self._needed(seen[width]) for place, width in offer.widths)

    def _needed(self, cost: float) -> float:
        """Tokens of a turn from which several of them pay, at that cost in tokens of plain steps."""
        return _MARGIN * cost + (_RISK * max(0.0, cost - 1.0) if self._sees and not self._last else 0.0)

    def ran(self, count: int, kept: int, cost: float) -> None:
        """Count the turns of a pass: their number, the tokens that they kept, and the dense steps of one."""
        self._lost = max(0.0, self._lost + count * (cost - 1.0) - kept)

    def pays_from(self, now: Situation) -> dict[str, int]:
        """By the drafter that turns replace, the least length of a match from which a first turn would pay."""
        option = now.turns
        if option is None:
            return {}
        results, chances = results_of(now.learnt, option.drafter), match_of(now.learnt, option.drafter).chances
        least = NEVER
        for place, width in now.offer.widths:
            needed = _MARGIN * now.rate * results.cost(place, now.verify) + _LAUNCH
            for match in range(1, min(least, len(chances))):
                if _by_match(chances, match, width) > needed:
                    least = match
                    break
        return {option.drafter: least}

    def _prospect(self, now: Situation) -> Prospect | None:
        """The best turns, whether they pay or not; None where the runtime drafts none."""
        option = now.turns
        if option is None or now.state.max_draft_tokens < 1:
            return None
        results = self.results = results_of(now.learnt, option.drafter)
        found = 0.0, 1.0, 0, 0  # tokens, cost, width and turns of the best
        match, most = now.state.matches.get(option.drafter, 0), min(_MOST, max(_FIRST, 2 * self._last))
        chances = match_of(now.learnt, option.drafter).chances
        for place, width in now.offer.widths:
            tokens, cost, turns = results.tokens(place), results.cost(place, now.verify), most
            if tokens <= self._needed(now.rate * cost):
                first = _by_match(chances, match, width)
                turns = 1 if first < _LONG else _FEW
                tokens = (first - _LAUNCH + (turns - 1) * tokens) / turns
            if tokens * found[1] > found[0] * cost:
                found = tokens, cost, width, turns
        tokens, cost, width, turns = found
        return Prospect(
            rate=now.rate, tokens=tokens, cost=cost, option=option, way=Way(option.drafter, None), length=width - 1,
            turns=turns, match=match, verify=now.verify,
        )  # fmt: skip

    def _trial(self, now: Situation) -> Prospect | None:
        """Turns that could bring more than is expected of them, once the text is long enough for what they may lose."""
        option, results = now.turns, self.results
        assert option is not None
        assert results is not None
        best, hope = None, 0.0
        for place, width in now.offer.widths:
            cost = results.cost(place, now.verify)
            found = results.hopeful(place) / (now.rate * cost)
            if found > max(hope, _MARGIN):
                hope, best = found, (results.tokens(place), cost, width)
        if best is None:
            self.due = NEVER
            return None
        tokens, cost, width = best
        if not _pays_back(now, hope * now.rate * cost, cost):
            return None
        lost = self._lost + _LAUNCH + _TRIED * max(0.0, now.rate * cost - tokens)
        self.due = self._begun + max(_TRIED_FROM, int(lost / _SHARE))
        if now.state.position < self.due:
            return None
        return Prospect(
            rate=now.rate, tokens=tokens, cost=cost, option=option, length=width - 1, turns=_TRIED, is_trial=True,
            match=now.state.matches.get(option.drafter, 0), verify=now.verify,
        )  # fmt: skip


def _pays_back(now: Situation, tokens: float, cost: float) -> bool:
    """Whether turns that bring this number of tokens at this cost save the launch of a pass with them before the answer
    can be as long as it may be."""
    left = now.state.max_draft_tokens + 1
    return left / now.rate - max(1.0, left / tokens) * cost > _LAUNCH


def results_of(learnt: Learnt, drafter: str) -> TurnResults:
    """The results of a drafter's turns, begun on first use."""
    found = learnt.turns.get(drafter)
    if found is None:
        found = learnt.turns[drafter] = TurnResults.measured(learnt.costs.source.turn_s)
    return found


def match_of(learnt: Learnt, drafter: str) -> MatchAcceptance:
    """Acceptance of a drafter's turns by the length of the match that the first one followed."""
    return learnt.match(f"turns of {drafter}")


def _by_match(chances: list[float], match: int, width: int) -> float:
    """Tokens of the next turn, which follows a match of that length."""
    if not match:
        return 1.0
    chance, tokens = 1.0, 1.0
    for step in range(width - 1):
        chance *= chances[min(match + step, LONGEST_MATCH)]
        tokens += chance
    return tokens
