"""The default policy: draft what brings the most tokens a second on this machine, for this text, and no more.

Everything is in two currencies, tokens and dense steps (the cost of one plain pass). The going rate `r`, tokens that a
dense step brings lately, turns one into the other: a thing is worth doing when its expected tokens exceed `r` times its
cost. That is the rule that maximises the long-run ratio of tokens to time (renewal-reward, Dinkelbach 1967). What is
known of costs is in `costs`, of acceptance in `acceptance`; what outlives a generation in `learnt`.

The going rate leaves rounds with a lookup out. Where text repeats itself lookups bring tokens for next to nothing, but
a stretch that does not repeat has to be paid for at its own price: measured by the rate of both together, drafting
there would seem a waste, and plain steps, the cheapest rounds there are, would win.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from specdec.policies.goodput.acceptance import LONGEST_MATCH, UNKNOWN, DraftAcceptance, signal_class
from specdec.policies.goodput.costs import MOST_ROWS, CostModel
from specdec.policies.goodput.learnt import LONGEST_INTERVAL, LONGEST_PLAIN_INTERVAL, PLAIN, Arm, Learnt, Results, Trial
from specdec.policies.goodput.rounds import Lesson, Prospect, RoundLog, best_length
from specdec.policies.parameters import check_count, check_number

from specdec.engine.policy import DraftOption, DraftPlan, Knowledge, RoundOutcome, RoundState, StepSignals
from specdec.errors import InvalidArgumentError
from specdec.model.effort import check_effort

EFFORTS = (0.2, 0.35, 0.5, 0.7, 1.0)  # ascending
_LOOKAHEAD = 4  # further draft steps that a decision to go on takes into account: verify costs rise in stairs
_MARGIN = 0.01  # tokens that drafting has to be better than a plain step by
_TRIAL_ROUNDS, _TRIAL_TOKENS = 2, 3
_TRIAL_EVERY = 3  # rounds between looks at whether one is due
_ALLOWANCE = 1.5  # dense steps that trials may lose before anything was earned
_OPTIMISM = 1.0  # standard deviations that an effort may be better than thought, for a trial to be worth it
_LESSONS = 2  # rounds that are learnt from at once: between passes this code is in no cache, and two cost little more
_EARLY_ROUNDS = 24  # up to which every round teaches at once
_REFRESH = 4  # rounds between looks at which efforts are worth having


@dataclass(slots=True)
class _Menu:
    """The efforts of one way of drafting that are worth having, and the best of them for all steps alike.

    An effort comes with the cost of its step and the chance that its token is kept.
    """

    option: DraftOption
    acceptance: DraftAcceptance
    efforts: list[tuple[float, float, float]]
    best: tuple[float, float, float]
    made: int
    candidates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.candidates = [effort for effort, _, _ in self.efforts]


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
    _menus: dict[tuple[str, str | None], _Menu] = field(default_factory=dict, init=False, repr=False)
    _now: Prospect = field(default_factory=Prospect, init=False, repr=False)
    _trial: tuple[Arm, int] | None = field(default=None, init=False, repr=False)
    _lessons: list[Lesson] = field(default_factory=list, init=False, repr=False)
    _log: RoundLog = field(default_factory=RoundLog, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.effort is not None:
            self.effort = check_effort(self.effort)
        for name in ("longest", "longest_match"):
            if check_count(name, getattr(self, name)) > MOST_ROWS - 1:
                raise InvalidArgumentError(f"{name} must be at most {MOST_ROWS - 1}, not {getattr(self, name)}")
        self.explore = check_number("explore", self.explore, 0, 0.5)

    def begin(self, knowledge: Knowledge) -> None:
        """Take measured costs, and what earlier generations of the model have taught."""
        self._knowledge = knowledge

    def plan(self, state: RoundState) -> DraftPlan:
        """The most profitable round, or now and then a trial of something else."""
        learnt = self._learnt or self._recall(state)
        rate = self._rate(learnt, state)
        plain_cost = learnt.costs.verify[1]
        best_draft: Prospect | None = None
        for option in state.options:
            prospect = self._prospect(learnt, option, state, rate)
            if prospect is not None and (best_draft is None or prospect.net > best_draft.net):
                best_draft = prospect
        if best_draft is not None and best_draft.net > 1.0 - rate * plain_cost + _MARGIN:
            best = best_draft
        else:
            best = Prospect(rate=rate, tokens=1.0, cost=plain_cost)
        chosen = self._try_out(learnt, state, best) if state.max_draft_tokens else best
        self._log.planned(state, best=best, chosen=chosen, plain_cost=plain_cost, best_draft=best_draft)
        self._now = chosen
        if not chosen.option or not chosen.length:
            return DraftPlan(num_draft_tokens=0, effort=1.0)
        if chosen.option.view is not None and state.distribution is not None:
            chosen.classes = [signal_class(state.distribution, greedy=chosen.greedy)]
        return DraftPlan(
            num_draft_tokens=min(chosen.length, state.max_draft_tokens),
            effort=chosen.effort,
            drafter=chosen.option.drafter,
            view=chosen.option.view,
        )

    def next_step(self, signals: StepSignals) -> float | None:
        """The effort of one more token, if one more token pays."""
        now, learnt = self._now, self._learnt
        assert learnt is not None  # plan has run
        last = self._read(now, signals)
        if now.menu is None:
            return now.effort
        verify, drafted, rate = learnt.costs.verify, signals.index + 1, now.rate
        if drafted + 2 > MOST_ROWS:
            return None
        base, base_cost, mean = now.menu.best
        after = now.menu.acceptance.after
        chance = after.chance(base, last)
        # What may follow the next token, if it is kept, at average acceptance.
        prefix, gain, ahead = now.chance * chance, 0.0, 0.0
        for rows in range(drafted + 2, min(drafted + 2 + _LOOKAHEAD, MOST_ROWS)):
            prefix *= mean
            gain += prefix - rate * (base_cost + verify[rows + 1] - verify[rows])
            if gain > ahead:
                ahead = gain
        worth, effort = -1e9, 0.0
        shares = after.chances(now.menu.candidates, last)
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
        assert learnt is not None  # plan has run
        learnt.rounds += 1
        now.kept_whole = outcome.drafted if outcome.accepted == outcome.drafted else 0
        signals = outcome.signals
        if signals and now.option is not None and now.option.view is not None:
            for one in signals[len(now.classes) - 1 :]:  # the last token of a plan is not asked about
                self._read(now, one)
        self._lessons.append(Lesson.of(outcome, now, learnt.rounds))
        if now.is_trial or len(self._lessons) >= _LESSONS or learnt.rounds < _EARLY_ROUNDS:
            self._learn(learnt)

    def _learn(self, learnt: Learnt) -> None:
        """Learn costs, acceptance and results from the rounds since the last time."""
        for lesson in self._lessons:
            self._learn_round(learnt, lesson)
        self._lessons.clear()

    def _learn_round(self, learnt: Learnt, lesson: Lesson) -> None:
        now, costs, rows = lesson.prospect, learnt.costs, lesson.drafted + 1
        costs.observe_verify(rows, lesson.round_s - lesson.draft_s)
        if costs.has_changed():  # which costs did, a plain pass tells
            self._trial_of(learnt, PLAIN).restart(lesson.number)
        cost = costs.verify[min(rows, MOST_ROWS)]
        expected, real = 1.0, 1.0 + lesson.accepted
        if lesson.way is None:
            self._trial_of(learnt, PLAIN).last_used = lesson.number
        elif now.option is not None:
            cost += self._learn_draft(learnt, now.option, lesson)
            expected = now.expected if lesson.steps else min(now.tokens, lesson.drafted + 1.0)
        learnt.spent += cost
        tokens = 0.5 * (expected + real)
        if now.is_trial:
            learnt.lost = max(0.0, learnt.lost + cost - tokens / now.rate)
        elif now.option is None or now.menu is not None:
            learnt.pace.add(tokens, cost, lesson.number)
        if lesson.way is not None and lesson.steps and now.counts:
            results = learnt.results.setdefault(lesson.way, Results())
            results.add(tokens, cost, lesson.number)
        self._log.finished(
            real, lesson.round_s, expected=expected, cost=cost, plain_cost=costs.verify[1],
            dense_s=costs.seconds_of_dense_step(),
        )  # fmt: skip

    def summary(self) -> Mapping[str, Any]:
        """Predicted and real gain, when and why drafting was parked, what was tried out, and the rates learnt."""
        if self._learnt is None:
            return {}
        self._learn(self._learnt)
        acceptance = {
            f"{drafter}{'' if view is None else ' ' + view} {effort:g}": round(one.after.mean(effort), 3)
            for (drafter, view), one in sorted(self._learnt.acceptance.items(), key=str)
            for effort in sorted(one.tried)
        }
        return self._log.summary() | {"acceptance_learnt": acceptance}

    def _recall(self, state: RoundState) -> Learnt:
        """What is known for this model and temperature."""
        memory = self._knowledge.memory
        costs = memory.get(("goodput", "costs"))
        if costs is None:
            costs = memory["goodput", "costs"] = CostModel(self._knowledge.costs)
        key = ("goodput", round(state.temperature, 1), round(state.verify_effort, 2))
        learnt: Learnt | None = memory.get(key)
        if learnt is None:
            learnt = memory[key] = Learnt(costs)
        else:
            learnt.new_text()
        self._learnt = learnt
        return learnt

    def _rate(self, learnt: Learnt, state: RoundState) -> float:
        """Tokens that a dense step brings lately, at least what plain decoding gives."""
        plain = 1.0 / learnt.costs.verify[1]
        rate = plain
        if learnt.pace.rounds < 8.0:  # not enough seen: what average acceptance promises
            for option in state.options:
                if option.view is not None:
                    _, cost, mean = self._menu(learnt, option, state, rate).best
                    for _ in range(2):
                        _, tokens, total = best_length(learnt.costs.verify, cost, mean, rate, min(self.longest, 8))
                        rate = max(rate, tokens / total)
            weight = learnt.pace.rounds
            rate = (learnt.pace.tokens + (8.0 - weight) * rate) / (learnt.pace.cost + 8.0 - weight)
        else:
            rate = learnt.pace.tokens / learnt.pace.cost
        return max(plain, rate)

    def _efforts(self, option: DraftOption, state: RoundState) -> tuple[float, ...]:
        if not option.takes_effort:
            return (1.0,)
        if self.effort is not None:
            return (self.effort,)
        return (state.draft_effort,) if state.is_effort_asked else EFFORTS

    def _menu(self, learnt: Learnt, option: DraftOption, state: RoundState, rate: float) -> _Menu:
        """Efforts of a way of drafting, less those that cost as much as a better one."""
        way = (option.drafter, option.view)
        menu = self._menus.get(way)
        if menu is not None and learnt.rounds < menu.made + _REFRESH:
            return menu
        acceptance = learnt.accepted(way)
        entries = [
            (effort, learnt.costs.draft(*way, effort), acceptance.after.mean(effort))
            for effort in self._efforts(option, state)
        ]
        useful, highest = [], 0.0
        for one in sorted(entries, key=itemgetter(1)):  # a dearer effort has to agree more
            if one[2] > highest:
                useful.append(one)
                highest = one[2]
        best, most = useful[0], -1e9
        for one in useful:
            _, tokens, cost = best_length(learnt.costs.verify, one[1], one[2], rate, self.longest)
            if tokens - rate * cost > most:
                best, most = one, tokens - rate * cost
        menu = self._menus[way] = _Menu(option, acceptance, useful, best, learnt.rounds)
        return menu

    def _prospect(self, learnt: Learnt, option: DraftOption, state: RoundState, rate: float) -> Prospect | None:
        """What a round with this option is expected to bring; None when it has nothing to propose."""
        verify = learnt.costs.verify
        if option.view is None:
            return self._lookup(learnt, option, state, rate)
        menu = self._menu(learnt, option, state, rate)
        effort, cost, mean = menu.best
        limit = min(self.longest, state.max_draft_tokens)
        length, tokens, total = best_length(verify, cost, mean, rate, limit)
        results = learnt.results.get((option.drafter, option.view))
        if not length and results is None:
            return None
        if results is not None and limit > 2:
            tokens, total = results.expect(tokens, total, learnt.rounds)
        return Prospect(
            rate=rate, tokens=tokens, cost=total, option=option, effort=effort, length=limit, menu=menu, counts=True,
            greedy=not state.temperature,
        )  # fmt: skip

    def _lookup(self, learnt: Learnt, option: DraftOption, state: RoundState, rate: float) -> Prospect | None:
        """The same for a drafter that runs no model, from the length of its match where it tells it."""
        match = self._match(option.drafter, state)
        if not match:
            return None
        acceptance = learnt.match(option.drafter)
        verify = learnt.costs.verify
        chances = acceptance.chances
        chance, tokens, gain = 1.0, 1.0, 0.0
        length, best_tokens, best_gain = 0, 1.0, 0.0
        for k in range(1, min(self.longest_match, state.max_draft_tokens, MOST_ROWS - 1) + 1):
            chance *= chances[min(match + k - 1, LONGEST_MATCH)]
            tokens += chance
            gain += chance - rate * (verify[k + 1] - verify[k])
            if gain > best_gain:
                length, best_tokens, best_gain = k, tokens, gain
        if not length:
            return None
        cost = verify[length + 1] + learnt.costs.draft(option.drafter, None, 0.0)
        return Prospect(
            rate=rate, tokens=best_tokens, cost=cost, option=option, effort=1.0, length=length, match=match,
            acceptance=acceptance,
        )  # fmt: skip

    def _match(self, drafter: str, state: RoundState) -> int:
        """Length of the match that a lookup has found. One that goes on where the last round's was kept whole is longer
        than the lookup can tell, which looks at a few tokens only."""
        found, last = state.matches.get(drafter, 1), self._now
        if found and last.kept_whole and last.option is not None and last.option.drafter == drafter:
            return max(found, min(last.match + last.kept_whole + 1, LONGEST_MATCH))
        return found

    def _try_out(self, learnt: Learnt, state: RoundState, best: Prospect) -> Prospect:
        """`best`, or an arm whose trial is due, is affordable and could be better."""
        if self._trial is not None:
            arm, left = self._trial
            self._trial = (arm, left - 1) if left > 1 else None
            return self._forced(learnt, state, arm, best)
        if learnt.rounds % _TRIAL_EVERY or learnt.lost > self.explore * learnt.spent + (
            _ALLOWANCE if self.explore else 0.0
        ):
            return best
        for arm in self._arms(state):
            trial = self._trial_of(learnt, arm)
            if learnt.rounds < trial.due:
                continue
            longest = LONGEST_PLAIN_INTERVAL if arm == PLAIN else LONGEST_INTERVAL
            if learnt.rounds - trial.last_used < trial.interval:
                trial.due = learnt.rounds + trial.interval  # in use: nothing to find out
                continue
            trial.postpone(learnt.rounds, longest)
            if arm == PLAIN or self._could_win(learnt, arm, best):
                if arm != PLAIN:
                    self._trial = (arm, _TRIAL_ROUNDS - 1)
                return self._forced(learnt, state, arm, best)
        return best

    def _arms(self, state: RoundState) -> list[Arm]:
        arms: list[Arm] = [PLAIN]
        for option in state.options:
            if option.view is not None:
                efforts = sorted(self._efforts(option, state), reverse=True)  # what high ones show bounds low ones
                arms += [(option.drafter, option.view, effort) for effort in efforts]
            elif state.matches.get(option.drafter, 1):
                arms.append((option.drafter, None, 1.0))
        return arms

    def _trial_of(self, learnt: Learnt, arm: Arm) -> Trial:
        """When the arm is due; a new one after a while, the more the later it was thought of."""
        trial = learnt.trials.get(arm)
        if trial is None:
            trial = learnt.trials[arm] = Trial(due=learnt.rounds + 12 + 6 * len(learnt.trials))
        return trial

    def _could_win(self, learnt: Learnt, arm: Arm, best: Prospect) -> bool:
        """Whether the arm would be better than `best` if it were as good as it may be."""
        drafter, view, effort = arm
        if view is None:
            return best.option is None  # where another one drafts, a match that does not pay is no news
        cost, rate = learnt.costs.draft(drafter, view, effort), best.rate
        highest = learnt.accepted((drafter, view)).after.mean(effort, _OPTIMISM)
        _, tokens, total = best_length(learnt.costs.verify, cost, highest, rate, self.longest)
        to_beat, menu = best.net, self._menus.get((drafter, view))
        if best.menu is not None and menu is best.menu:  # one computed figure against another
            _, step, mean = menu.best
            _, mean_tokens, mean_cost = best_length(learnt.costs.verify, step, mean, rate, self.longest)
            to_beat = mean_tokens - rate * mean_cost
        return tokens - rate * total > to_beat + _MARGIN

    def _forced(self, learnt: Learnt, state: RoundState, arm: Arm, best: Prospect) -> Prospect:
        """A round with this arm, whatever it is thought to be worth."""
        if arm == PLAIN:
            return Prospect(rate=best.rate, tokens=1.0, cost=learnt.costs.verify[1], is_trial=True)
        drafter, view, effort = arm
        option = next(one for one in state.options if (one.drafter, one.view) == (drafter, view))
        length = min(_TRIAL_TOKENS if view is None else self.longest, state.max_draft_tokens)
        prospect = Prospect(
            rate=best.rate, tokens=best.tokens, cost=best.cost, option=option, effort=effort, length=length,
            is_trial=True, greedy=not state.temperature,
        )  # fmt: skip
        if view is None:
            prospect.match = self._match(drafter, state)
            prospect.acceptance = learnt.match(drafter)
        else:
            menu = self._menu(learnt, option, state, best.rate)
            cost, acceptance = learnt.costs.draft(*arm), learnt.accepted((drafter, view))
            only = (effort, cost, acceptance.after.mean(effort, _OPTIMISM))
            prospect.menu = _Menu(option, acceptance, [only], only, learnt.rounds)
            prospect.counts = effort == menu.best[0]
        return prospect

    def _read(self, now: Prospect, signals: StepSignals) -> int:
        """Take a step's signal in; returns its class."""
        while len(now.classes) <= signals.index:  # tokens that showed nothing
            now.classes.append(UNKNOWN)
        last = signal_class(signals.distribution, greedy=now.greedy)
        now.classes.append(last)
        option = now.option
        assert option is not None
        assert self._learnt is not None
        acceptance = now.menu.acceptance if now.menu else self._learnt.accepted((option.drafter, option.view))
        now.chance *= acceptance.own.chance(signals.effort if option.takes_effort else 1.0, last)
        now.expected += now.chance
        return last

    def _learn_draft(self, learnt: Learnt, option: DraftOption, lesson: Lesson) -> float:
        """Learn from a draft; returns what it cost, in dense steps."""
        now, costs, drafter, view = lesson.prospect, learnt.costs, option.drafter, option.view
        if view is None or not lesson.steps:
            if now.acceptance is not None:
                now.acceptance.learn(now.match, lesson.drafted, lesson.accepted)
            self._trial_of(learnt, (drafter, view, 1.0)).last_used = lesson.number
            return costs.observe_draft(drafter, None, 0.0, lesson.draft_s)
        timed = 0.0
        efforts: dict[float, tuple[int, float]] = {}
        for effort, seconds in lesson.steps:
            count, so_far = efforts.get(effort, (0, 0.0))
            efforts[effort] = (count + 1, so_far + seconds)
            timed += seconds
        total = 0.0
        for effort, (count, seconds) in efforts.items():
            # What the policy's own questions cost belongs to the steps, too.
            seconds = seconds / count * lesson.draft_s / (timed or 1.0)
            total += count * costs.observe_draft(drafter, view, effort, seconds)
            arm = (drafter, view, effort if option.takes_effort else 1.0)
            self._trial_of(learnt, arm).last_used = lesson.number
        # Every judged token counts for the effort that drafted it.
        acceptance = learnt.accepted((drafter, view))
        for index in range(min(lesson.accepted + 1, len(lesson.steps))):
            effort = lesson.steps[index][0] if option.takes_effort else 1.0
            acceptance.learn_token(effort, now.classes[index], now.classes[index + 1], index < lesson.accepted)
        return total
