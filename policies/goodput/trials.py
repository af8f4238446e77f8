"""What is not in use is tried again now and then: `Trials` decides when, and what a trial may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.policies.goodput.learnt import LONGEST_INTERVAL, LONGEST_PLAIN_INTERVAL
from specdec.policies.goodput.length import best_length
from specdec.policies.goodput.lookup import match_length
from specdec.policies.goodput.menu import Menu, Menus
from specdec.policies.goodput.prospect import Prospect, Situation
from specdec.policies.goodput.ways import ANY, PLAIN, Arm, Way

from specdec.engine.policy import DraftOption, RoundState

_ROUNDS, _LOOKUP_TOKENS = 2, 3
_EVERY = 3  # rounds between looks at whether one is due
_ALLOWANCE = 1.5  # dense steps that trials may lose before anything was earned
_UNCONFIRMED_ROUNDS, _CONFIRM_EVERY = 16, 3  # rounds of a process in which costs are confirmed, and between such
_CONFIRM_TOKENS = 2  # to draft in such a round
_PROBE_TOKENS = 1  # to draft where only the cost of a step is asked
_GOOD_MATCH = 2.0  # tokens that a lookup has to bring for the confirmation to wait
# Speed over the going rate that drafts may reach at best, from which costs of theirs are confirmed early.
_PROMISE = 1.2
_SHORT_STEP_S = 0.008  # seconds of a plain step up to which that is asked: what surrounds a pass counts there
_HOPED = 2.0  # standard deviations that their steps may be cheaper than known
_DOUBT = 0.08  # standard deviation of the logarithm of a cost from which it needs confirmation
_OPTIMISM = 1.0  # standard deviations that an effort may be kept more often than thought, for a trial to be worth it
_LUCKIER = 0.7  # the same for a match
MARGIN = 0.01  # tokens that something has to be better by


@dataclass(slots=True)
class Trials:
    """The trials of a generation.

    Attributes:
        menus: of the generation.
        explore: share of the time that trials may cost.
    """

    menus: Menus
    explore: float
    _confirm_from: int = 1  # number of the round
    _running: tuple[Arm, int] | None = None  # and the rounds that it still has
    _arms: dict[Way, list[Arm]] = field(default_factory=dict)  # of options that run a model, by the way in use
    _tried: set[str] = field(default_factory=set)  # drafters that the caller named, once they have drafted

    def choose(self, now: Situation, best: Prospect) -> Prospect:
        """`best`, or an arm whose trial is due, is affordable and could be better."""
        learnt = now.learnt
        if self._running is not None:
            arm, left = self._running
            self._running = (arm, left - 1) if left > 1 else None
            return self._forced(now, arm, best)
        if now.state.named and self.explore and (named := self._untried(now, best)) is not None:
            self._running = (named, _ROUNDS - 1)
            return self._forced(now, named, best)
        if not self.explore or learnt.lost > self.explore * learnt.spent + _ALLOWANCE:
            return best
        if learnt.rounds <= _UNCONFIRMED_ROUNDS and (first := self._confirmation(now, best)) is not None:
            return first
        if learnt.rounds % _EVERY:
            return best
        for arm in self._all_arms(now, best):
            trial = learnt.trial(arm)
            if learnt.rounds < trial.due:
                continue
            longest = LONGEST_PLAIN_INTERVAL if arm == PLAIN else LONGEST_INTERVAL
            if learnt.rounds - trial.last_used < trial.interval:
                trial.due = learnt.rounds + trial.interval  # in use: nothing to find out, but of longer drafts
                if (longer := self._longer(now, arm, best)) is not None:
                    return longer
                continue
            if arm != PLAIN and arm.effort == ANY and (probe := self._probe(now, arm, best)) is not None:
                return probe
            trial.postpone(learnt.rounds, longest)
            if arm == PLAIN or self._could_win(now, arm, best):
                if arm != PLAIN:
                    self._running = (arm, _ROUNDS - 1)
                return self._forced(now, arm, best)
        return best

    def _untried(self, now: Situation, best: Prospect) -> Arm | None:
        """A drafter that the caller named, that has something to propose and never drafted for this model."""
        learnt, state = now.learnt, now.state
        for option in now.offer.options:
            drafter, view = option.drafter, option.view
            if drafter in self._tried or drafter not in state.named:
                continue
            if view is None and (option is now.turns or not state.matches.get(drafter, 1)):
                continue
            self._tried.add(drafter)
            if any(arm.drafter == drafter and trial.last_used >= 0 for arm, trial in learnt.trials.items()):
                continue
            if view is None:
                return Arm(drafter, None, 1.0)
            way = now.offer.ways(option, state)[0]
            menu = self.menus.of(option, way, now, best.rate)
            return Arm(drafter, view, menu.best[0], way.reach.windowed)
        return None

    def _confirmation(self, now: Situation, best: Prospect) -> Prospect | None:
        """Early in a process, a round of what `best` is not: costs of a table may be wrong, and the rounds of one kind
        alone would never show what the other kind costs beside them."""
        learnt, costs, beside = now.learnt, now.learnt.costs, now.state.rows_beside
        certain = max(_DOUBT, costs.noise)
        if learnt.rounds < self._confirm_from or (best.match and best.tokens > _GOOD_MATCH):
            return None
        if best.option is not None:
            if costs.has_seen_rows(beside + 1) and costs.doubt_of_rows(beside + 1) < certain:
                return None
            self._confirm_from = learnt.rounds + _CONFIRM_EVERY
            return self._forced(now, PLAIN, best)
        for option, way in now.offer.model_ways(now.state):
            menu = self.menus.get(way)
            if menu is None:
                continue
            effort = menu.best[0]
            asked = option.waits or costs.scale < _SHORT_STEP_S
            if asked and self._promise(now, menu, best.rate) < _PROMISE:
                continue
            rows = beside + 1 + _CONFIRM_TOKENS
            doubt = max(costs.doubt_of_draft(way, effort), costs.doubt_of_rows(rows))
            if doubt > certain or not costs.has_seen_rows(rows):
                self._confirm_from = learnt.rounds + _CONFIRM_EVERY
                prospect = self._forced(now, Arm(way.drafter, way.view, effort, way.reach.windowed), best)
                prospect.menu, prospect.length = None, min(_CONFIRM_TOKENS, prospect.length)
                return prospect
        return None

    def _promise(self, now: Situation, menu: Menu, rate: float) -> float:
        """Speed over the going rate of a way of drafting whose steps are as cheap as they may well be. Where that is
        little, finding out costs a short answer more than it can bring: later trials will."""
        effort, cost, mean = menu.best
        known = menu.option.waits  # the least that it costs
        doubt = 0.0 if known else now.learnt.costs.doubt_of_draft(menu.way, effort)
        least = cost * math.exp(-_HOPED * doubt)
        _, tokens, total = best_length(now.verify, least, mean, rate, self.menus.longest, now.row)
        return tokens / (rate * total)

    def _all_arms(self, now: Situation, best: Prospect) -> list[Arm]:
        """All efforts of what a model's drafts attend to now; of what else they may attend to, the best effort."""
        arms: list[Arm] = [PLAIN]
        state = now.state
        for option in now.offer.options:
            drafter, view = option.drafter, option.view
            if view is not None:
                ways = now.offer.ways(option, state)
                used = best.way if len(ways) > 1 and best.way in ways else ways[0]
                found = self._arms.get(used)
                if found is None:
                    found = self._arms[used] = [
                        *(Arm(drafter, view, ANY, way.reach.windowed) for way in ways if way != used),
                        *(Arm(drafter, view, effort, used.reach.windowed) for effort in self._efforts(option, state)),
                    ]
                arms += found
            elif now.turns is None and state.matches.get(drafter, 1):
                arms.append(Arm(drafter, None, 1.0))
        return arms

    def _efforts(self, option: DraftOption, state: RoundState) -> list[float]:
        """Efforts to try in order: what high ones show bounds low ones."""
        return sorted(self.menus.efforts(option, state), reverse=True)

    def _probe(self, now: Situation, arm: Arm, best: Prospect) -> Prospect | None:
        """A short draft that attends to what none has attended to yet, in contexts of any length: what it costs is
        hardly known, and one step tells."""
        _, way = _option_of(arm, now)
        if now.learnt.costs.has_seen_reach(way):
            return None
        prospect = self._forced(now, arm, best)
        prospect.menu, prospect.length = None, min(_PROBE_TOKENS, prospect.length)
        return prospect

    def _longer(self, now: Situation, arm: Arm, best: Prospect) -> Prospect | None:
        """A longer draft than pays, whose rows may be cheaper than thought; without it they would never be measured."""
        menu = best.menu
        if menu is None or arm.view is None or menu.best[0] != arm.effort or menu is not self.menus.get(menu.way):
            return None
        if arm[:2] != menu.way[:2] or arm.windowed != menu.way.reach.windowed:
            return None
        _, step, mean = menu.best
        cheapest = self._cheapest(now)
        length, tokens, total = best_length(now.verify, step, mean, best.rate, self.menus.longest, now.row)
        longer, more, dearer = best_length(cheapest, step, mean, best.rate, self.menus.longest)
        if longer <= length or more - best.rate * dearer <= tokens - best.rate * total + MARGIN:
            return None
        prospect = self._forced(now, arm, best)
        prospect.menu, prospect.length = None, min(longer, prospect.length)
        return prospect

    def _could_win(self, now: Situation, arm: Arm, best: Prospect) -> bool:
        """Whether the arm would be better than `best` if it were as good as it may be."""
        learnt, rate, longest = now.learnt, best.rate, self.menus.longest
        if arm.view is None:
            match = match_length(arm.drafter, now.state, now.last)
            chance = learnt.match(arm.drafter).hopeful(match, _LUCKIER)
            option = next(one for one in now.state.options if one.drafter == arm.drafter)
            most = min(_LOOKUP_TOKENS, option.most_tokens or _LOOKUP_TOKENS)
            _, tokens, total = best_length(now.verify, 0.0, chance, rate, most)
            return tokens - rate * total > best.net + MARGIN
        option, way = _option_of(arm, now)
        effort = arm.effort if arm.effort != ANY else self.menus.of(option, way, now, best.rate).best[0]
        cost = (learnt.costs.draft if option.waits else learnt.costs.cheapest_draft)(way, effort)
        rival = best.menu if best.menu is not None and best.menu.way[:2] == way[:2] else None
        other = rival is not None and rival.way != way
        highest = learnt.accepted(way).after.mean(effort, _OPTIMISM, lean=way.reach.lean, other_reach=other)
        _, tokens, total = best_length(self._cheapest(now), cost, highest, rate, longest)
        to_beat = best.net
        if rival is not None and self.menus.get(rival.way) is rival:  # one computed figure against another
            _, step, mean = rival.best
            _, mean_tokens, mean_cost = best_length(now.verify, step, mean, rate, longest, now.row)
            to_beat = mean_tokens - rate * mean_cost
        return tokens - rate * total > to_beat + MARGIN

    def _cheapest(self, now: Situation) -> Sequence[float]:
        """Costs of passes at their lowest plausible price, worked out once for all arms of a round."""
        if now.cheapest is None:
            most = self.menus.longest + 1
            now.cheapest = now.learnt.costs.cheapest(now.verify, now.state.rows_beside, most)
        return now.cheapest

    def _forced(self, now: Situation, arm: Arm, best: Prospect) -> Prospect:
        """A round with this arm, whatever it is thought to be worth."""
        learnt, state, verify = now.learnt, now.state, now.verify
        if arm == PLAIN:
            return Prospect(rate=best.rate, tokens=1.0, cost=verify[1], is_trial=True, verify=verify)
        option, way = _option_of(arm, now)
        length = min(_LOOKUP_TOKENS if arm.view is None else self.menus.longest, state.max_draft_tokens)
        length = min(length, option.most_tokens or length)
        prospect = Prospect(
            rate=best.rate, tokens=best.tokens, cost=best.cost, option=option, way=way, effort=arm.effort,
            length=length, is_trial=True, greedy=not state.temperature, verify=verify,
        )  # fmt: skip
        if arm.view is None:
            prospect.match = match_length(arm.drafter, state, now.last)
            prospect.acceptance = learnt.match(arm.drafter)
            return prospect
        menu = self.menus.of(option, way, now, best.rate)
        prospect.effort = effort = arm.effort if arm.effort != ANY else menu.best[0]
        cost, acceptance = learnt.costs.draft_beside(way, effort, state.rows_beside), learnt.accepted(way)
        only = (effort, cost, acceptance.after.mean(effort, _OPTIMISM, lean=way.reach.lean))
        prospect.menu = Menu(option, way, acceptance, [only], only, learnt.rounds)
        prospect.counts = effort == menu.best[0]
        return prospect


def _option_of(arm: Arm, now: Situation) -> tuple[DraftOption, Way]:
    """The option and the way of an arm. A context that is short by now, or long, has other ways than
    when the trial began."""
    option = next(one for one in now.offer.options if (one.drafter, one.view) == arm[:2])
    ways = now.offer.ways(option, now.state)
    return option, next((way for way in ways if way.reach.windowed == arm.windowed), ways[0])
