"""What a finished round teaches: `Lesson`, and how costs, acceptance and results take it in (`learn`)."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.policies.goodput.costs import MOST_ROWS
from specdec.policies.goodput.learnt import Learnt, Results
from specdec.policies.goodput.log import RoundLog
from specdec.policies.goodput.prospect import Prospect
from specdec.policies.goodput.turns import match_of, results_of
from specdec.policies.goodput.ways import ANY, PLAIN, Arm, Way

from specdec.engine.policy import DraftOption, RoundOutcome

_MOST_LOST = 0.75  # dense steps that a trial counts for: before costs are known the count may be wrong
_DOUBT, _AGAIN = 0.15, 3  # standard deviation of the logarithm of a plain pass's cost, and rounds to the next one then


@dataclass(slots=True)
class Lesson:
    """What a round has to teach, without the logits of its steps.

    Attributes:
        prospect: what the round was planned as.
        number: of the round, over all generations, from 1.
        way: that was asked to draft; None after a plain step.
        drafted: tokens proposed.
        accepted: how many of them were kept.
        steps: effort and seconds of every draft step.
        draft_s: seconds of drafting.
        round_s: seconds of the whole round.
        beside: rows of other sequences in the verify pass.
        share: this sequence's share of `draft_s`.
        turns: tokens that each of the runtime's own turns kept; empty for a round run by the engine.
    """

    prospect: Prospect
    number: int
    way: Way | None
    drafted: int
    accepted: int
    steps: list[tuple[float, float]]
    draft_s: float
    round_s: float
    beside: int = 0
    share: float = 1.0
    turns: tuple[int, ...] = ()

    @classmethod
    def of(cls, outcome: RoundOutcome, prospect: Prospect, number: int) -> Lesson:
        """From what the engine tells."""
        way = None if outcome.drafter is None else prospect.way
        steps = [(one.effort, one.seconds) for one in outcome.signals]
        return cls(
            prospect, number, way, outcome.drafted, outcome.accepted, steps, outcome.draft_s, outcome.round_s,
            outcome.rows_beside, outcome.draft_share, outcome.turns,
        )  # fmt: skip


def learn(learnt: Learnt, lesson: Lesson, log: RoundLog) -> None:
    """Learn costs, acceptance and results from a round, and note in `log` what it brought."""
    now, costs, rows = lesson.prospect, learnt.costs, lesson.drafted + 1
    if lesson.turns:
        _learn_turns(learnt, lesson, log)
        return
    costs.observe_verify(lesson.beside + rows, lesson.round_s - lesson.draft_s)
    if costs.has_changed():  # which costs did, only trials tell
        learnt.machine_changed(lesson.number)
    verify = costs.beside(lesson.beside)
    cost = verify[min(rows, MOST_ROWS)]
    expected, real = 1.0, 1.0 + lesson.accepted
    if lesson.way is None:
        plain = learnt.trial(PLAIN)
        plain.last_used = lesson.number
        if costs.doubt_of_rows(lesson.beside + 1) > max(_DOUBT, costs.noise):  # a stall, or another cost than thought
            plain.due = min(plain.due, lesson.number + _AGAIN)
            plain.last_used = lesson.number - plain.interval
    elif now.option is not None:
        cost += _learn_draft(learnt, now.option, lesson.way, lesson)
        expected = now.expected if lesson.steps else min(now.tokens, lesson.drafted + 1.0)
    learnt.spent += cost
    tokens = 0.5 * (expected + real)
    plain_s = costs.seconds_of_plain_step(lesson.beside)
    if now.is_trial:
        paid = cost
        if plain_s and costs.doubt_of_rows(lesson.beside + rows) > _DOUBT:  # no less than what it took is known
            paid = min(cost, lesson.round_s / plain_s * verify[1])
        learnt.lost = max(0.0, learnt.lost + min(paid - tokens / now.rate, _MOST_LOST))
    elif now.option is None or now.menu is not None:
        learnt.pace.add(tokens, cost, lesson.number)
    if lesson.way is not None and lesson.steps and now.counts:
        results = learnt.results.setdefault(lesson.way, Results())
        results.add(tokens, cost, lesson.number)
    log.finished(
        real, lesson.round_s, expected=expected, cost=cost, plain_cost=verify[1],
        plain_s=plain_s, is_plain=not lesson.drafted,
    )  # fmt: skip


def _learn_turns(learnt: Learnt, lesson: Lesson, log: RoundLog) -> None:
    """Learn from a pass that the runtime drafted and verified by itself. Its costs are kept apart from costs of other
    passes, which include the host's time between them."""
    now, count = lesson.prospect, len(lesson.turns)
    assert now.option is not None
    results = results_of(learnt, now.option.drafter)
    plain_s = results.plain_s or learnt.costs.seconds_of_plain_step(0)
    if plain_s:
        results.learn(now.length + 1, lesson.turns, lesson.round_s / count / plain_s)
    if now.match:
        match_of(learnt, now.option.drafter).learn(now.match, now.length, lesson.turns[0])
    cost, tokens = count * now.cost, float(count + sum(lesson.turns))
    learnt.spent += cost
    log.finished(
        tokens, lesson.round_s, expected=count * now.tokens, cost=cost, plain_cost=learnt.costs.verify[1],
        plain_s=plain_s, is_plain=False,
    )  # fmt: skip


def _learn_draft(learnt: Learnt, option: DraftOption, way: Way, lesson: Lesson) -> float:
    """Learn from a draft; returns what it cost, in dense steps."""
    now, costs, drafter, view = lesson.prospect, learnt.costs, way.drafter, way.view
    if view is None or not lesson.steps:
        if now.acceptance is not None:
            now.acceptance.learn(now.match, lesson.drafted, lesson.accepted)
        learnt.trial(Arm(drafter, view, 1.0)).last_used = lesson.number
        return costs.observe_draft(Way(drafter, None), 0.0, lesson.draft_s)
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
        total += count * (
            costs.observe_draft_beside(way, effort, seconds, share=lesson.share, rows=lesson.beside)
            if lesson.beside
            else costs.observe_draft(way, effort, seconds)
        )
        for tried in (effort if option.takes_effort else 1.0, *[ANY] * bool(way.reach.context)):
            learnt.trial(Arm(drafter, view, tried, way.reach.windowed)).last_used = lesson.number
    # Every judged token counts for the effort that drafted it.
    acceptance = learnt.accepted(way)
    for index in range(min(lesson.accepted + 1, len(lesson.steps))):
        effort = lesson.steps[index][0] if option.takes_effort else 1.0
        acceptance.learn_token(
            effort, now.classes[index], now.classes[index + 1], index < lesson.accepted, way.reach.lean
        )
    return total
