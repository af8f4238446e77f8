"""What `goodput` knows of one model: `Learnt`, kept in the model's memory from one generation to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from specdec.policies.goodput.acceptance import DraftAcceptance, MatchAcceptance
from specdec.policies.goodput.costs import CostModel
from specdec.policies.goodput.turn_results import TurnResults
from specdec.policies.goodput.ways import ANY, PLAIN, Arm, Way

_MEMORY = 40.0  # rounds after which a result has forgotten two thirds
_IDLE = 100.0  # rounds without use after which it has forgotten as much
FIRST_INTERVAL, LONGEST_INTERVAL, LONGEST_PLAIN_INTERVAL = 8, 1024, 96
_SOON = 3  # rounds after which windows that were never tried are
_PRIOR_ROUNDS = 4.0  # rounds that a computed expectation is worth against observed ones


@dataclass(slots=True)
class Results:
    """What the rounds of one way of drafting brought lately, in tokens and in dense steps, discounted."""

    tokens: float = 0.0
    cost: float = 0.0
    rounds: float = 0.0
    last: int = 0

    def add(self, tokens: float, cost: float, now: int) -> None:
        """Count a round, the `now`-th of all."""
        stay = (1.0 - 1.0 / _MEMORY) * math.exp(-(now - self.last - 1) / _IDLE)
        self.tokens = self.tokens * stay + tokens
        self.cost = self.cost * stay + cost
        self.rounds = self.rounds * stay + 1.0
        self.last = now

    def expect(self, tokens: float, cost: float, now: int) -> tuple[float, float]:
        """Tokens and cost of a round, drawn towards what was computed for it."""
        stay = math.exp((self.last - now) / _IDLE)
        weight = self.rounds * stay + _PRIOR_ROUNDS
        return (
            (self.tokens * stay + _PRIOR_ROUNDS * tokens) / weight,
            (self.cost * stay + _PRIOR_ROUNDS * cost) / weight,
        )


@dataclass(slots=True)
class Trial:
    """The next trial of an arm that is not in use.

    Attributes:
        due: number of the round from which it may be.
        interval: rounds to the one after that; doubles with every trial and every look that shows no hope.
        last_used: number of the last round that used the arm.
    """

    due: int
    interval: int = FIRST_INTERVAL
    last_used: int = -(10**9)

    def restart(self, now: int) -> None:
        """Try it at once, and soon again."""
        self.due, self.interval, self.last_used = now, FIRST_INTERVAL, now - FIRST_INTERVAL

    def hasten(self, now: int) -> None:
        """Try it sooner."""
        self.interval = max(FIRST_INTERVAL, self.interval // 4)
        self.due = min(self.due, now + self.interval)

    def postpone(self, now: int, longest: int) -> None:
        """Wait, and longer each time."""
        self.due = now + self.interval
        self.interval = min(longest, 2 * self.interval)


@dataclass(slots=True)
class Learnt:
    """Costs, acceptance and results for one temperature.

    Attributes:
        costs: shared by all temperatures.
        acceptance: by drafter and view.
        matches: by drafter that tells how long its match is.
        results: by way of drafting.
        pace: results of all rounds but trials and lookups: its tokens over its cost are the going rate.
        trials: by arm.
        turns: results of rounds that the runtime runs by itself, by drafter; see `turns`.
        rounds: rounds so far, over all generations.
        spent: cost of all rounds so far, in dense steps.
        lost: cost that trials added, in dense steps.
        settled_from: round up to which a change of the machine is not reported.
    """

    costs: CostModel
    acceptance: dict[tuple[str, str | None], DraftAcceptance] = field(default_factory=dict)
    matches: dict[str, MatchAcceptance] = field(default_factory=dict)
    results: dict[Way, Results] = field(default_factory=dict)
    pace: Results = field(default_factory=Results)
    trials: dict[Arm, Trial] = field(default_factory=dict)
    turns: dict[str, TurnResults] = field(default_factory=dict)
    rounds: int = 0
    spent: float = 0.0
    lost: float = 0.0
    settled_from: int = 0

    def new_text(self) -> None:
        """Another generation begins, on other text: rates and results count for less, trials come sooner."""
        for acceptance in self.acceptance.values():
            acceptance.new_text()
        for match in self.matches.values():
            match.new_text()
        for turns in self.turns.values():
            turns.new_text()
        for results in (*self.results.values(), self.pace):
            results.tokens, results.cost, results.rounds = (
                0.2 * value for value in (results.tokens, results.cost, results.rounds)
            )
        for arm, trial in self.trials.items():
            if arm == PLAIN:  # the cost of a plain pass does not depend on the text
                continue
            trial.hasten(self.rounds)

    def machine_changed(self, now: int) -> None:
        """Try a plain step at once, and the rest sooner; not again for a while, where load comes and goes."""
        if now < self.settled_from:
            return
        self.settled_from = now + LONGEST_PLAIN_INTERVAL
        for trial in self.trials.values():
            trial.hasten(now)
        self.trial(PLAIN).restart(now)

    def trial(self, arm: Arm) -> Trial:
        """When the arm is due; a new one after a while, the more the later it was thought of."""
        found = self.trials.get(arm)
        if found is None:
            wait = _SOON if arm.effort == ANY and arm != PLAIN else 12 + 6 * len(self.trials)
            found = self.trials[arm] = Trial(due=self.rounds + wait)
        return found

    def match(self, drafter: str) -> MatchAcceptance:
        """Acceptance of a drafter that tells how long its match is, created on first use."""
        found = self.matches.get(drafter)
        if found is None:
            found = self.matches[drafter] = MatchAcceptance()
        return found

    def accepted(self, way: Way) -> DraftAcceptance:
        """Acceptance of a way of drafting, whatever it attends to; created on first use."""
        found = self.acceptance.get((way.drafter, way.view))
        if found is None:
            found = self.acceptance[way.drafter, way.view] = DraftAcceptance.of(way.view)
        return found
