"""How often drafted tokens are kept, given what is known of them: `Acceptance`, counted online, forgetting slowly."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field

from specdec.policies.base import Distribution

# Edges of the classes of a step's signal. Greedy decoding changes its mind where two logits are close, so their margin
# tells most; a drawn token changes with any part of the distribution, which entropy sums up.
_MARGINS = (0.15, 0.4, 0.8, 1.4, 2.2, 3.2, 4.5, 6.5)
_ENTROPIES = (0.02, 0.08, 0.2, 0.5, 1.0, 1.7, 2.5, 3.5)
CLASSES = len(_MARGINS) + 1
UNKNOWN = CLASSES  # class of a token whose forerunner showed nothing
LONGEST_MATCH = 16

_MEMORY = 150.0  # tokens after which a rate has forgotten two thirds of what it knew
_CLASS_MEMORY = 400.0
_MATCH_MEMORY = 40.0
_PRIOR_WEIGHT = 4.0  # tokens that a guess is worth


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

    def estimate(self, prior: float, weight: float = _PRIOR_WEIGHT) -> float:
        """The share, drawn towards `prior` as if `weight` tokens had said so."""
        return (self.kept + weight * prior) / (self.seen + weight)


@dataclass(slots=True)
class EffortAcceptance:
    """Acceptance of one drafter, view and effort.

    Attributes:
        prior: what to assume before anything was seen.
        overall: of every token whose forerunners were kept.
        own: the same by the class of the token's own signal.
        after: the same by the class of the signal before it.
    """

    prior: float
    overall: Rate = field(default_factory=Rate)
    own: list[Rate] = field(default_factory=lambda: [Rate() for _ in range(CLASSES + 1)])
    after: list[Rate] = field(default_factory=lambda: [Rate() for _ in range(CLASSES + 1)])
    _mean: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._mean = self.overall.estimate(self.prior)

    def mean(self) -> float:
        """Chance that a token is kept when those before it are."""
        return self._mean

    def fade(self, share: float) -> None:
        """Keep `share` of what is known of the mean; what signals tell is true of other text as well."""
        self.overall.kept *= share
        self.overall.seen *= share
        self._mean = self.overall.estimate(self.prior)

    def of(self, own: int) -> float:
        """The same for a token whose signal is of class `own`."""
        return self.own[own].estimate(self._mean)

    def behind(self, last: int) -> float:
        """The same for a token that is not drafted yet, behind one of class `last`."""
        return self.after[last].estimate(self._mean)

    def highest(self) -> float:
        """What the mean may be at best: two standard deviations above what was seen."""
        mean, seen = self.mean(), self.overall.seen
        return min(0.995, mean + 2.0 * math.sqrt(max(mean * (1 - mean), 0.02) / (seen + _PRIOR_WEIGHT)))

    def learn_token(self, before: int, own: int, is_kept: bool) -> None:
        """Count a token whose forerunners were all kept; what follows a rejected one is never judged.

        Args:
            before: class of the signal before it.
            own: class of its own signal.
            is_kept: the verifier agreed.
        """
        self.overall.add(is_kept, _MEMORY)
        self._mean = self.overall.estimate(self.prior)
        self.after[before].add(is_kept, _CLASS_MEMORY)
        self.own[own].add(is_kept, _CLASS_MEMORY)


@dataclass(slots=True)
class MatchAcceptance:
    """Acceptance of a drafter that shows no signals, by the length of the match behind each token.

    Every kept token lengthens the match, so token j of a draft counts with what the draft began with and j more.
    """

    rates: list[Rate] = field(default_factory=lambda: [Rate() for _ in range(LONGEST_MATCH + 1)])

    def of(self, match: int) -> float:
        """Chance that a token with `match` tokens of context behind it is kept when those before it are."""
        match = min(match, LONGEST_MATCH)
        prior = min(0.9, 0.15 + 0.12 * match)
        return self.rates[match].estimate(prior, 3.0)

    def learn(self, match: int, drafted: int, accepted: int) -> None:
        """Count a draft that began with a match of `match` tokens."""
        for index in range(min(accepted + 1, drafted)):
            self.rates[min(match + index, LONGEST_MATCH)].add(index < accepted, _MATCH_MEMORY)
