"""The default policy: draft what brings the most tokens a second on this machine, for this text, and no more.

Everything is in two currencies, tokens and dense steps (the cost of one plain pass). The going rate `r`, tokens that a
dense step brings lately, turns one into the other: a thing is worth doing when its expected tokens exceed `r` times its
cost. That is the rule that maximises the long-run ratio of tokens to time (renewal-reward, Dinkelbach 1967). What is
known of costs is in `costs`, of acceptance in `acceptance`; what outlives a generation in `learnt`; how rounds teach in
`lesson`.

The going rate leaves rounds with a lookup out. Where text repeats itself lookups bring tokens for next to nothing, but
a stretch that does not repeat has to be paid for at its own price: measured by the rate of both together, drafting
there would seem a waste, and plain steps, the cheapest rounds there are, would win.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from specdec.policies.goodput.acceptance import UNKNOWN, signal_class
from specdec.policies.goodput.costs import MOST_ROWS, CostModel
from specdec.policies.goodput.learnt import Learnt
from specdec.policies.goodput.length import best_length
from specdec.policies.goodput.lesson import Lesson, learn
from specdec.policies.goodput.log import RoundLog
from specdec.policies.goodput.lookup import lookup_prospect
from specdec.policies.goodput.menu import Menus
from specdec.policies.goodput.offer import Offer
from specdec.policies.goodput.prospect import Prospect, Situation
from specdec.policies.goodput.shared import Shared
from specdec.policies.goodput.trials import MARGIN, Trials
from specdec.policies.goodput.turns import QUIET, TurnPlanner
from specdec.policies.goodput.ways import Way

from specdec.engine.policy import (
    CostTable,
    DraftOption,
    DraftPlan,
    InvalidArgumentError,
    Knowledge,
    RoundOutcome,
    RoundState,
    StepSignals,
    check_count,
    check_effort,
    check_number,
)

_NO_OFFER = Offer(())
_PLAIN = DraftPlan(num_draft_tokens=0, effort=1.0)
_LOOKAHEAD = 4  # further draft steps that a decision to go on takes into account: verify costs rise in stairs
_LESSONS = 2  # rounds that are learnt from at once: between passes this code is in no cache, and two cost little more
_EARLY_ROUNDS = 24  # up to which every round teaches at once
_LOOKS, _BRIEF_STEP_S = 8, 0.004  # rounds between considering a model's drafts, where plain steps are shorter
_KNOWN_ROUNDS = 8.0  # rounds after which the going rate is what was seen alone


@dataclass(slots=True)
class GoodputPolicy:
    """Choose drafter, view, length and effort by expected tokens a second; not drafting is one of the choices.

    Before a round it compares, at the going rate, a plain step, what each drafter is expected to bring, and, where a
    lookup has found a match, what that match is worth. While drafting it goes on as long as one more token, given the
    chance that all before it are kept, earns its draft step and its row in the verify pass, and takes the effort that
    earns most. Costs and chances are learnt as rounds end and forgotten slowly; they outlive the generation with the
    loaded model. What is not in use is tried again after rising intervals; trials may cost `explore` of the time.

    Attributes:
        effort: the only effort to use; None chooses among several for each step, unless the caller named one.
        longest: most tokens that a model drafts in a round.
        longest_match: most tokens that a lookup drafts in a round.
        explore: share of the time that trials may cost, 0 to 0.5.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    effort: float | None = None
    longest: int = 16
    longest_match: int = 24
    explore: float = 0.01
    _knowledge: Knowledge = field(default_factory=Knowledge, init=False, repr=False)
    _learnt: Learnt | None = field(default=None, init=False, repr=False)
    _offer: Offer = field(default=_NO_OFFER, init=False, repr=False, compare=False)
    _menus: Menus = field(init=False, repr=False)
    _trials: Trials = field(init=False, repr=False)
    _now: Prospect = field(default_factory=Prospect, init=False, repr=False)
    _lessons: list[Lesson] = field(default_factory=list, init=False, repr=False)
    _shared: Shared = field(default_factory=Shared, init=False, repr=False)
    _model_drafts: bool = field(default=False, init=False, repr=False)  # were the best at the last look
    _whole_from: int = field(default=_LOOKS, init=False, repr=False)  # round from which to consider them again
    _turns: TurnPlanner = field(default_factory=TurnPlanner, init=False, repr=False)
    _log: RoundLog = field(default_factory=RoundLog, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.effort is not None:
            self.effort = check_effort(self.effort)
        for name, value in (("longest", self.longest), ("longest_match", self.longest_match)):
            if (count := check_count(name, value)) > MOST_ROWS - 1:
                raise InvalidArgumentError(f"{name} must be at most {MOST_ROWS - 1}, not {value}")
            setattr(self, name, count)
        self.explore = check_number("explore", self.explore, 0, 0.5)
        self._menus = Menus(self.effort, self.longest)
        self._trials = Trials(self._menus, self.explore)

    @property
    def quiet_rounds(self) -> int:
        """Rounds before the first decision where the runtime drafts by itself."""
        return QUIET

    def begin(self, knowledge: Knowledge) -> None:
        """Take measured costs, and what earlier generations of the model have taught."""
        self._knowledge = knowledge
        self._offer = knowledge.memory.get(("goodput", "offer"), _NO_OFFER)
        self._costs()

    def plan(self, state: RoundState) -> DraftPlan:
        """The most profitable round, or now and then a trial of something else."""
        if not self._offer.are(state.options):
            self._offer = self._knowledge.memory["goodput", "offer"] = Offer(state.options)
        offer, learnt = self._offer, self._learnt
        if learnt is None:
            learnt = self._recall(state)
        if state.missed and not self._now.turns and self._turns.miss(learnt, offer, state):
            self._shared.look_again()
        if self._shared.is_known_not_to_pay(learnt, state):
            self._log.rested(state)
            return _PLAIN
        now = Situation(learnt, state, offer, self._shared.verify(learnt, state), self._now)
        plain_cost = now.verify[1]
        is_brief = self._is_brief(now)
        now.rate = 1.0 / plain_cost if is_brief else self._rate(now)
        best_draft = None if is_brief else self._best_draft(now)
        if best_draft is not None and best_draft.net > 1.0 - now.rate * plain_cost + MARGIN:
            best = best_draft
        else:
            best = Prospect(rate=now.rate, tokens=1.0, cost=plain_cost, verify=now.verify)
        self._model_drafts = best.option is not None
        best = self._turns.choose(now, best)
        tries = state.max_draft_tokens and not best.turns and not is_brief
        chosen = self._trials.choose(now, best) if tries else best
        self._log.planned(state, best=best, chosen=chosen, plain_cost=plain_cost, best_draft=best_draft)
        self._now = chosen
        if not chosen.option or not chosen.length:
            turns = {} if best.option is not None else self._turns.pays_from(now)
            is_settled = state.rows_beside or turns or (learnt.rounds >= _EARLY_ROUNDS and state.max_draft_tokens)
            if is_settled and best.option is None and not chosen.is_trial:
                self._shared.looked(learnt, state, now.verify, now.rate, turns, self._turns.due)
            return _PLAIN
        if chosen.option.view is not None and state.distribution is not None:
            chosen.classes = [signal_class(state.distribution, greedy=chosen.greedy)]
        return _plan_of(chosen, chosen.option, min(chosen.length, state.max_draft_tokens))

    def next_step(self, signals: StepSignals) -> float | None:
        """The effort of one more token, if one more token pays."""
        now = self._now
        last = self._read(now, signals)
        if now.menu is None:
            return now.effort
        verify, drafted, rate = now.verify, signals.index + 1, now.rate
        if drafted + 2 > MOST_ROWS:
            return None
        base, base_cost, mean = now.menu.best
        after = now.menu.acceptance.after
        lean = now.menu.way.reach.lean
        chance = after.chance(base, last, lean)
        # What may follow the next token, if it is kept, at average acceptance.
        prefix, gain, ahead = now.chance * chance, 0.0, 0.0
        for rows in range(drafted + 2, min(drafted + 2 + _LOOKAHEAD, MOST_ROWS)):
            prefix *= mean
            gain += prefix - rate * (base_cost + verify[rows + 1] - verify[rows])
            if gain > ahead:
                ahead = gain
        worth, effort = -1e9, 0.0
        shares = after.chances(now.menu.candidates, last, lean)
        for (candidate, cost, _), share in zip(now.menu.efforts, shares, strict=True):
            value = share * now.chance + ahead * share / chance - rate * cost
            if value > worth:
                worth, effort = value, candidate
        if worth <= rate * (verify[drafted + 2] - verify[drafted + 1]):
            return None
        return effort

    def observe(self, outcome: RoundOutcome) -> None:
        """Keep what the round has shown, and learn from several rounds at once."""
        now, learnt = self._now, self._learnt
        if learnt is None:  # nothing was decided yet
            return
        learnt.rounds += 1
        if outcome.ahead and self._turns.results is not None:
            self._turns.results.saw_plain(outcome.verify_s, outcome.ahead)
        if outcome.turns:
            self._turns.ran(len(outcome.turns), outcome.accepted, self._now.cost)
        if not self._shared.is_lesson(learnt.rounds):
            learnt.spent += now.cost
            self._log.passed(outcome.round_s, now.cost)
            return
        now.kept_whole = outcome.drafted if outcome.accepted == outcome.drafted else 0
        signals = outcome.signals
        if signals and now.option is not None and now.option.view is not None:
            for one in signals[len(now.classes) - 1 :]:  # the last token of a plan is not asked about
                self._read(now, one)
        self._lessons.append(Lesson.of(outcome, now, learnt.rounds))
        if now.is_trial or len(self._lessons) >= _LESSONS or learnt.rounds < _EARLY_ROUNDS:
            self._learn(learnt)

    def costs(self) -> CostTable | None:
        """What passes cost by now."""
        if self._learnt is None:
            return None
        self._learn(self._learnt)
        return self._learnt.costs.table()

    def summary(self) -> Mapping[str, Any]:
        """Predicted and estimated gain, when and why drafting was parked, what was tried out, and the rates learnt."""
        if self._learnt is None:
            return {}
        self._learn(self._learnt)
        acceptance = {
            f"{drafter}{'' if view is None else ' ' + view} {effort:g}{' windowed' * (lean < 0)}": round(
                one.after.mean(effort, lean=lean), 3
            )
            for (drafter, view), one in sorted(self._learnt.acceptance.items(), key=str)
            for effort, lean in sorted(one.tried)
        }
        return self._log.summary() | {"acceptance_learnt": acceptance}

    def _learn(self, learnt: Learnt) -> None:
        """Learn from the rounds since the last time."""
        for lesson in self._lessons:
            learn(learnt, lesson, self._log)
        self._lessons.clear()

    def _recall(self, state: RoundState) -> Learnt:
        """What is known for this model and temperature."""
        memory, costs = self._knowledge.memory, self._costs()
        key = ("goodput", round(state.temperature, 1), round(state.verify_effort, 2))
        self._shared.prices = memory.setdefault((*key, "prices"), {})
        learnt: Learnt | None = memory.get(key)
        if learnt is None:
            learnt = memory[key] = Learnt(costs)
        else:
            learnt.new_text()
        self._learnt = learnt
        return learnt

    def _costs(self) -> CostModel:
        """The cost model, with all measurements so far."""
        memory = self._knowledge.memory
        costs: CostModel | None = memory.get(("goodput", "costs"))
        if costs is None:
            costs = memory["goodput", "costs"] = CostModel(self._knowledge.costs)
        elif costs.source is not self._knowledge.costs:
            costs.absorb(self._knowledge.costs)
        return costs

    def _rate(self, now: Situation) -> float:
        """Tokens that a dense step brings lately, at least what plain decoding gives."""
        learnt, verify = now.learnt, now.verify
        plain = 1.0 / verify[1]
        rate, pace = plain, learnt.pace
        if pace.rounds >= _KNOWN_ROUNDS:
            return max(plain, pace.tokens / pace.cost)
        for option, way in now.offer.model_ways(now.state):  # not enough seen: what average acceptance promises
            _, cost, mean = self._menus.of(option, way, now, rate).best
            for _ in range(2):
                _, tokens, total = best_length(verify, cost, mean, rate, min(self.longest, 8), now.row)
                rate = max(rate, tokens / total)
        missing = _KNOWN_ROUNDS - pace.rounds
        return max(plain, (pace.tokens + missing * rate) / (pace.cost + _KNOWN_ROUNDS - pace.rounds))

    def _is_brief(self, now: Situation) -> bool:
        """Whether to consider turns and plain steps only: where a GPU step is short, considering a model's drafts as
        well takes a good part of that time, and the result stays the same for a while."""
        option, index = now.turns, now.state.round_index
        if option is None or self._model_drafts or now.learnt.costs.scale >= _BRIEF_STEP_S:
            return False
        if index < self._whole_from and (index or not now.state.named - {option.drafter}):
            return True
        self._whole_from = index + _LOOKS
        return False

    def _best_draft(self, now: Situation) -> Prospect | None:
        """The most profitable way to draft; None when there is nothing to propose.

        Of the lookups only the one with the longest match that pays takes part: chances are not known well enough
        to compare several of them, and the best would be the luckiest.
        """
        best: Prospect | None = None
        state, longest = now.state, 0
        for option in now.offer.by_match(state.matches):
            if option.view is not None:
                for way in now.offer.ways(option, state):
                    best = _better(best, self._prospect(now, option, way))
                continue
            if now.turns is not None and option.drafter not in state.named:
                continue  # the runtime's own turns follow a match as well, for less of the host's time
            match = state.matches.get(option.drafter, 0)
            if match and match < longest:
                continue
            found = lookup_prospect(now, option, longest=self.longest_match)
            if found is not None:
                longest, best = max(longest, match), _better(best, found)
        return best

    def _prospect(self, now: Situation, option: DraftOption, way: Way) -> Prospect | None:
        """What a round in which a model drafts this way is expected to bring; None when it has nothing to propose."""
        learnt, state, verify, rate = now.learnt, now.state, now.verify, now.rate
        menu = self._menus.of(option, way, now, rate)
        effort, cost, mean = menu.best
        limit = min(self.longest, state.max_draft_tokens)
        length, tokens, total = best_length(verify, cost, mean, rate, limit, now.row)
        results = learnt.results.get(way)
        if not length and results is None:
            return None
        if results is not None and limit > 2:
            tokens, total = results.expect(tokens, total, learnt.rounds)
        return Prospect(
            rate=rate, tokens=tokens, cost=total, option=option, way=way, effort=effort, length=limit, menu=menu,
            counts=True, greedy=not state.temperature, verify=verify,
        )  # fmt: skip

    def _read(self, now: Prospect, signals: StepSignals) -> int:
        """Take a step's signal in; returns its class."""
        while len(now.classes) <= signals.index:  # tokens that showed nothing
            now.classes.append(UNKNOWN)
        last = signal_class(signals.distribution, greedy=now.greedy)
        now.classes.append(last)
        option, way = now.option, now.way
        assert option is not None
        assert way is not None
        assert self._learnt is not None
        acceptance = now.menu.acceptance if now.menu else self._learnt.accepted(way)
        effort = signals.effort if option.takes_effort else 1.0
        now.chance *= acceptance.own.chance(effort, last, way.reach.lean)
        now.expected += now.chance
        return last


def _better(best: Prospect | None, other: Prospect | None) -> Prospect | None:
    """The one with more to gain, the first of equals."""
    if best is None or other is None:
        return best or other
    return other if other.net > best.net else best


def _plan_of(chosen: Prospect, option: DraftOption, length: int) -> DraftPlan:
    """A prospect, as the engine is told of it."""
    windowed = chosen.way.reach.windowed if chosen.way is not None and chosen.way.reach.context else None
    return _plan(
        length, chosen.effort, option.drafter, option.view, max(1, chosen.turns), *_at_once(chosen), windowed
    )  # fmt: skip


@lru_cache(maxsize=512, typed=True)
def _plan(
    length: int, effort: float, drafter: str, view: str | None, turns: int, at_once: int, least_margin: float,
    windowed: bool | None,
) -> DraftPlan:  # fmt: skip
    """A plan: of the same few one in nearly every round, so they are kept."""
    return DraftPlan(
        num_draft_tokens=length, effort=effort, drafter=drafter, view=view, turns=turns, at_once=at_once,
        least_margin=least_margin, windowed=windowed,
    )  # fmt: skip


def _at_once(chosen: Prospect) -> tuple[int, float]:
    """Tokens of a round to draft before `next_step` is asked, and the margin below which it is asked earlier. Margins
    tell little of tokens that are drawn at random."""
    if chosen.option is None or chosen.option.view is None or not chosen.greedy:
        return 1, 0.0
    if chosen.menu is None:  # a trial, of one length and effort
        return chosen.length, 0.0
    return chosen.menu.at_once, chosen.menu.least_margin
