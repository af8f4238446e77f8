"""How often drafted tokens are kept, given what is known of them: `Acceptance`, counted online, forgetting slowly."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import mul

from specdec.engine.policy import Distribution

# Edges of the classes of a step's signal. Greedy decoding changes its mind where two logits are close, so their margin
# tells most; a drawn token changes with any part of the distribution, which entropy sums up.
_MARGINS = (0.15, 0.4, 0.8, 1.4, 2.2, 3.2, 4.5, 6.5)
_ENTROPIES = (0.02, 0.08, 0.2, 0.5, 1.0, 1.7, 2.5, 3.5)
CLASSES = len(_MARGINS) + 1
UNKNOWN = CLASSES  # class of a token whose forerunner showed nothing
LONGEST_MATCH = 48  # tokens of a match from which more say no more
_MATCH_CLASSES = (*(range(n, n + 1) for n in range(16)), range(16, 24), range(24, 32), range(32, 48), range(48, 49))
_CLASS_OF_MATCH = tuple(place for place, lengths in enumerate(_MATCH_CLASSES) for _ in lengths)

_MATCH_MEMORY = 40.0  # tokens after which a rate has forgotten two thirds of what it knew
_UNIT_GROWTH = 1.0 + 1.0 / 300.0  # a token's weight among the classes, over that of the token before it
# Variances of parts of log-odds before anything was seen, and what a token adds to them.
_MODEL_VARIANCE, _EFFORT_VARIANCE, _CLASS_VARIANCE, _TEXT_VARIANCE = 0.5, 0.1, 0.3, 0.3
_SPREAD_VARIANCE = 0.25
# Log-odds that a window of a long context costs: between 0.2 and 1 were measured. Every text has its own.
_GAP, _GAP_VARIANCE = 0.4, 0.8
_CENTRE = 0.7  # effort whose chance the model's own part stands for
_GROWTH, _TEXT_GROWTH = 2e-5, 1e-3
# Guesses of views: how often a token is kept at effort 1, and the power of the share that lower efforts leave out. A
# quantised model's own bits agree more often than 4-bit copies of 16-bit weights do.
_COPIES = 0.87, 2.2
_GUESSES = {"nested": (0.93, 2.9), "own": (0.96, 2.4)}


def signal_class(distribution: Distribution, *, greedy: bool) -> int:
    """Class of a step's signal, 0 to `CLASSES` - 1; the number means nothing beyond its equality."""
    if greedy:
        return bisect_right(_MARGINS, distribution.margin)
    return bisect_right(_ENTROPIES, distribution.entropy)


@dataclass(slots=True)
class Rate:
    """A share of kept tokens, where old tokens weigh less and less.

    Attributes:
        kept: discounted number of kept tokens.
        seen: discounted number of tokens, at most the memory.
    """

    kept: float = 0.0
    seen: float = 0.0

    def add(self, is_kept: bool, memory: float) -> None:
        """Count a token."""
        stay = 1.0 - 1.0 / memory
        self.kept = self.kept * stay + is_kept
        self.seen = self.seen * stay + 1.0


class LogOdds:
    """Log-odds of a token being kept: what is known of the model, the effort, a signal's class, and the text, added up.

    Drafts in long contexts have a further part, by whether they attend to a window or to all of it. Every judged token
    teaches all of them, so an effort that is hardly used profits from what the others show: easy text is easy for all
    of them, and what a class of signals means differs little between them. Each part has a value and a variance, moved
    by one step of an extended Kalman filter with a Bernoulli likelihood; the variances grow a little with every token,
    which is how old tokens are forgotten.

    In long contexts methods take `lean`, see `Reach.lean`; else it is 0.

    Args:
        slope: log-odds that a class of signals is assumed to add to the one below it.
        view: the draft view; it selects the guess that is used until tokens have been judged.
    """

    __slots__ = ("_classes", "_efforts", "_gap", "_guessed", "_model", "_seen", "_spread", "_text", "_unit")

    def __init__(self, slope: float, view: str | None = None) -> None:
        self._guessed = _COPIES if view is None else _GUESSES.get(view, _COPIES)
        self._model = [self._guess(_CENTRE), _MODEL_VARIANCE]
        self._spread = [1.0, _SPREAD_VARIANCE]  # how much of the guessed differences between efforts is true
        self._efforts: dict[float, tuple[list[float], float]] = {}  # and the guessed difference from _CENTRE
        self._text = [0.0, _TEXT_VARIANCE]
        self._gap = [_GAP, _GAP_VARIANCE]
        self._classes = [[slope * (one - (CLASSES - 1) / 2), _CLASS_VARIANCE] for one in range(CLASSES)]
        self._classes.append([0.0, _CLASS_VARIANCE])  # nothing shown
        self._seen = [1.0] * CLASSES  # tokens by class; later ones weigh more, in ever larger units
        self._unit = 1.0

    def chance(self, effort: float, signal: int, lean: float = 0.0) -> float:
        """Chance that a token is kept, given the class of a signal."""
        own, distance = self._efforts.get(effort) or self._effort(effort)
        base = self._model[0] + self._spread[0] * distance + own[0] + self._text[0]
        if lean:
            base += lean * self._gap[0]
        return 1.0 / (1.0 + math.exp(-base - self._classes[signal][0]))

    def chances(self, efforts: Sequence[float], signal: int, lean: float = 0.0) -> list[float]:
        """`chance` for several efforts."""
        known, slope = self._efforts, self._spread[0]
        common, of_text, of_class = self._model[0], self._text[0], self._classes[signal][0]
        if lean:
            common += lean * self._gap[0]
        found = []
        for effort in efforts:
            own, distance = known.get(effort) or self._effort(effort)
            base = common + slope * distance + own[0] + of_text
            found.append(1.0 / (1.0 + math.exp(-base - of_class)))
        return found

    def means(self, efforts: Sequence[float], lean: float) -> list[float]:
        """`mean` for several efforts."""
        known, slope = self._efforts, self._spread[0]
        common, of_text = self._model[0], self._text[0]
        values, seen, exp = [value for value, _ in self._classes[:CLASSES]], self._seen, math.exp
        count, found = sum(seen), []
        for effort in efforts:
            own, distance = known.get(effort) or self._effort(effort)
            base = common + slope * distance + own[0] + of_text
            if lean:
                base += lean * self._gap[0]
            total: float = sum(map(mul, seen, [1.0 / (1.0 + exp(-base - value)) for value in values]))
            found.append(total / count)
        return found

    def mean(self, effort: float, deviations: float = 0.0, *, lean: float = 0.0, other_reach: bool = False) -> float:
        """The same over all classes as they occur, with `deviations` standard deviations of the effort's own part
        added; with `other_reach` also of what a window costs, for comparison with drafts that attend to something
        else."""
        own, distance = self._efforts.get(effort) or self._effort(effort)
        base = self._model[0] + self._spread[0] * distance + own[0] + self._text[0]
        if lean:
            base += lean * self._gap[0]
        if deviations:
            doubt = own[1] + distance * distance * self._spread[1] + other_reach * self._gap[1]
            base += deviations * math.sqrt(doubt)
        chances = [1.0 / (1.0 + math.exp(-base - value)) for value, _ in self._classes[:CLASSES]]
        total: float = sum(map(mul, self._seen, chances))
        return total / sum(self._seen)

    def learn(self, effort: float, signal: int, is_kept: bool, lean: float = 0.0) -> None:
        """Count a token."""
        own, distance = self._efforts.get(effort) or self._effort(effort)
        model, of_class, text, spread = self._model, self._classes[signal], self._text, self._spread
        base = model[0] + spread[0] * distance + own[0] + text[0]
        gap = self._gap
        if lean:
            base += lean * gap[0]
        chance = 1.0 / (1.0 + math.exp(-base - of_class[0]))
        error, weight = is_kept - chance, max(chance * (1.0 - chance), 0.01)
        share = spread[1] * distance
        variance, of_own, of_signal, of_text = model[1], own[1], of_class[1], text[1]
        of_gap = lean * gap[1]
        total = 1.0 + weight * (variance + of_own + of_signal + of_text + of_gap * lean + share * distance)
        error, weight = error / total, weight / total
        # One part after the other, written out: this runs twice for every token.
        model[0] += variance * error
        model[1] = variance + _GROWTH - variance * variance * weight
        own[0] += of_own * error
        own[1] = of_own + _GROWTH - of_own * of_own * weight
        of_class[0] += of_signal * error
        of_class[1] = of_signal + _GROWTH - of_signal * of_signal * weight
        text[0] += of_text * error
        text[1] = of_text + _TEXT_GROWTH - of_text * of_text * weight
        if lean:
            gap[0] += of_gap * error
            gap[1] += _GROWTH - of_gap * of_gap * weight
        spread[0] += share * error
        spread[1] += _GROWTH - share * share * weight
        if signal < CLASSES:
            self._unit *= _UNIT_GROWTH
            self._seen[signal] += self._unit
            if self._unit > 1e6:
                self._seen, self._unit = [seen / self._unit for seen in self._seen], 1.0

    def new_text(self) -> None:
        """Another text begins, about which little is known."""
        self._text[0] *= 0.3
        self._text[1] = _TEXT_VARIANCE
        self._gap[1] = _GAP_VARIANCE

    def _effort(self, effort: float) -> tuple[list[float], float]:
        """The part of an effort that was not asked about before."""
        part = self._efforts[effort] = ([0.0, _EFFORT_VARIANCE], self._guess(effort) - self._guess(_CENTRE))
        return part

    def _guess(self, effort: float) -> float:
        """Log-odds of a token at that effort, close to those measured with small and medium models."""
        most, power = self._guessed
        chance = most * (1.0 - (1.0 - effort) ** power)
        return math.log(chance / (1.0 - chance))


@dataclass(slots=True)
class DraftAcceptance:
    """Acceptance of one drafter and view, by effort.

    Attributes:
        after: by the class of the signal before a token: for tokens that are not drafted yet.
        own: by the class of the token's own signal, which tells far more.
        tried: tokens judged, by effort and lean.
    """

    after: LogOdds = field(default_factory=lambda: LogOdds(0.1))
    own: LogOdds = field(default_factory=lambda: LogOdds(0.55))
    tried: dict[tuple[float, float], int] = field(default_factory=dict)

    @classmethod
    def of(cls, view: str | None) -> DraftAcceptance:
        """Acceptance of a view of which no token has been judged yet."""
        return cls(LogOdds(0.1, view), LogOdds(0.55, view))

    def learn_token(self, effort: float, before: int, own: int, is_kept: bool, lean: float = 0.0) -> None:
        """Count a token whose forerunners were all kept; what follows a rejected one is never judged.

        Args:
            effort: that drafted it.
            before: class of the signal before it.
            own: class of its own signal.
            is_kept: the verifier agreed.
            lean: of what the step attended to.
        """
        self.tried[effort, lean] = self.tried.get((effort, lean), 0) + 1
        self.after.learn(effort, before, is_kept, lean)
        self.own.learn(effort, own, is_kept, lean)

    def least_margin(self, effort: float, price: float, lean: float = 0.0) -> float:
        """Least margin of a greedy token, to the edge of a class, after which the next one is kept (and so is this one)
        with a chance of at least `price`."""
        for signal, margin in enumerate((0.0, *_MARGINS)):
            if self.own.chance(effort, signal, lean) * self.after.chance(effort, signal, lean) >= price:
                return margin
        return _MARGINS[-1]

    def new_text(self) -> None:
        """Another text begins."""
        self.after.new_text()
        self.own.new_text()


@dataclass(slots=True)
class MatchAcceptance:
    """Acceptance of a drafter that shows no signals, by the length of the match before each token.

    Every kept token lengthens the match, so token j of a draft counts with what the draft began with and j more. Long
    matches are counted in classes: they are rare, and nearly all are right.
    """

    rates: list[Rate] = field(default_factory=lambda: [Rate() for _ in _MATCH_CLASSES], init=False)
    chances: list[float] = field(default_factory=lambda: [_estimate(0.0, 0.0, one) for one in _GUESSED], init=False)
    """Chance that a token after a match of this length, 0 to `LONGEST_MATCH`, is kept if those before it are."""

    def run(self, match: int, most: int) -> list[float]:
        """Chances of the first `most` tokens of a draft that begins with a match of `match` tokens."""
        found = self.chances[match : match + most]
        if len(found) < most:
            found += self.chances[-1:] * (most - len(found))
        return found

    def learn(self, match: int, drafted: int, accepted: int) -> None:
        """Count a draft that began with a match of `match` tokens."""
        changed = set()
        for index in range(min(accepted + 1, drafted)):
            place = _CLASS_OF_MATCH[min(match + index, LONGEST_MATCH)]
            self.rates[place].add(index < accepted, _MATCH_MEMORY)
            changed.add(place)
        self._refresh(changed)

    def new_text(self) -> None:
        """Another text begins, where matches may mean something else: what was seen counts for half."""
        known = [place for place, rate in enumerate(self.rates) if rate.seen]
        for place in known:
            self.rates[place].kept *= 0.5
            self.rates[place].seen *= 0.5
        self._refresh(known)

    def hopeful(self, match: int, deviations: float) -> float:
        """The chance after a match, with as many standard deviations of what is not known of it added."""
        length = min(match, LONGEST_MATCH)
        chance, seen = self.chances[length], self.rates[_CLASS_OF_MATCH[length]].seen
        return min(1.0, chance + deviations * math.sqrt(chance * (1.0 - chance) / (seen + 1.0)))

    def _refresh(self, classes: Iterable[int]) -> None:
        rates, chances = self.rates, self.chances
        for place in classes:
            rate = rates[place]
            kept, seen = rate.kept, rate.seen
            for length in _MATCH_CLASSES[place]:
                chances[length] = _estimate(kept, seen, _GUESSED[length])


def _estimate(kept: float, seen: float, guessed: float) -> float:
    """The share of kept tokens, drawn towards a guess as if three tokens had said so."""
    return (kept + 3.0 * guessed) / (seen + 3.0)


def _guessed_match(length: int) -> float:
    """Chance of a token after a match of that many tokens, about what small models showed on seven kinds of prompts."""
    return max(min(0.9, 1.0 - math.exp(-0.25 * length)), 1.0 - 1.6 / max(length, 1))


_GUESSED: tuple[float, ...] = tuple(map(_guessed_match, range(LONGEST_MATCH + 1)))
