"""An engine without a model, for policies: drafts of known acceptance, passes of known cost, no clock but its own.

Every token to come has a difficulty. A step at effort e shows a margin that falls with difficulty, and its token is
kept with a chance that depends on difficulty and effort. So signals tell something, efforts matter, and the best fixed
setting can be found by trying all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from specdec.engine.policy import (
    CostTable,
    DraftOption,
    DraftPlan,
    Knowledge,
    Learner,
    Policy,
    RoundOutcome,
    RoundState,
    StepSignals,
)

MODEL = DraftOption("effort", "int4", takes_effort=True)
LOOKUP = DraftOption("ngram", None, takes_effort=False)
RECYCLE = DraftOption("recycle", None, takes_effort=False, most_tokens=2)
LONG, SEEN = 2048, 1024  # tokens of context from which drafts may have a window, and that it holds
STAIRS = {1: 1.0, 2: 1.15, 3: 1.2, 4: 1.25, 5: 1.3, 6: 1.5, 7: 1.65, 8: 1.8, 9: 1.9}


def stairs(rows: int) -> float:
    """Verify cost in dense steps, as measured on a small machine."""
    return STAIRS.get(rows) or 1.9 + 0.15 * (rows - 9)


class Level:
    """A distribution that shows how hard the token was."""

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.entropy = 3.0 * math.exp(-margin)
        self.top_probability = 1.0 / (1.0 + math.exp(-margin))


@dataclass
class World:
    """What the simulator runs in.

    Attributes:
        step: cost of a draft step by effort, in dense steps.
        noise: how wrong a draft's logits are, by effort: a token of margin m is kept with chance Phi(m / noise).
        verify: cost of a verify pass by rows.
        matches: chance that a lookup finds something, and that a token of it is kept; None without a lookup.
        recycles: chance that a recycled token is kept; 0 without recycling.
        drafts: the model can draft for itself.
        hardness: mean of the exponential margin of a token.
        beside: rows of other sequences in every verify pass. `verify` then costs for the rows of all.
        drafts_alone: none of the other sequences drafts, so that they wait; else all draft in the same passes.
        context: tokens of the prompt.
        attention: of one row to a position of the context, in dense steps of an empty context.
        blind: what a window of a long context adds to `noise`; None where drafts have none.
        reach: whether drafts have the window, where the policy has no choice; None leaves it to the policy.
        at_once: the runtime drafts several tokens before it asks, where a plan says so.
        dense_s: seconds of a dense step.
        jitter: standard deviation of the logarithm of every cost.
        spikes: chance that a pass takes ten times as long.
    """

    step: Callable[[float], float] = lambda effort: 0.1 + 0.2 * effort
    noise: Callable[[float], float] = lambda effort: 0.3 + 2.0 * (1 - effort) ** 2
    verify: Callable[[int], float] = stairs
    matches: tuple[float, float] | None = None
    recycles: float = 0.0
    drafts: bool = True
    hardness: float = 3.0
    beside: int = 0
    drafts_alone: bool = False
    context: int = 9
    attention: float = 0.0
    blind: float | None = None
    reach: bool | None = None
    at_once: bool = False
    dense_s: float = 0.01
    jitter: float = 0.0
    spikes: float = 0.0
    seed: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def options(self) -> tuple[DraftOption, ...]:
        chosen_from = LONG if self.blind is not None and self.reach is None else None
        found = (replace(MODEL, windowed_from=chosen_from),) * self.drafts + (LOOKUP,) * (self.matches is not None)
        return (*found, RECYCLE) if self.recycles else found

    @property
    def together(self) -> int:
        """Sequences whose draft steps share a pass."""
        return 1 if self.drafts_alone else self.beside + 1

    def attends(self, position: int, windowed: bool) -> float:
        """Cost of a row's attention."""
        return self.attention * (min(SEEN, position) if windowed else position)

    def is_windowed(self, plan: DraftPlan, position: int) -> bool:
        """Whether the drafts of a plan have a window."""
        asked = self.reach if self.reach is not None else plan.windowed is not False
        return self.blind is not None and position > LONG and asked

    def seconds(self, dense_steps: float) -> float:
        factor = math.exp(self.random.gauss(0, self.jitter)) * (10 if self.random.random() < self.spikes else 1)
        return dense_steps * self.dense_s * factor

    def costs(
        self,
        efforts: tuple[float, ...] = (0.2, 0.5, 1.0),
        *,
        counts: tuple[int, ...] = (1, 3, 5, 9),
        spread: float = 0.1,
    ) -> CostTable:
        """What a first measurement of passes over so many rows, and of steps at these efforts, would have found."""
        steps = {("effort", "int4", effort): self.dense_s * self.step(effort) for effort in efforts}
        return CostTable(
            verify_s={rows: self.dense_s * self.verify(rows) for rows in counts},
            draft_s=steps,
            verify_spread=dict.fromkeys(counts, spread),
            draft_spread=dict.fromkeys(steps, spread),
        )


@dataclass
class Tally:
    """What came of a run. `dense` leaves jitter and spikes out."""

    tokens: int = 0
    seconds: float = 0.0
    dense: float = 0.0
    rounds: int = 0
    drafted: int = 0
    efforts: dict[float, int] = field(default_factory=dict)
    drafters: dict[str | None, int] = field(default_factory=dict)
    windowed: int = 0  # rounds

    @property
    def rate(self) -> float:
        """Tokens a dense step: the gain over plain decoding."""
        return self.tokens / self.dense


def run(
    policy: Policy, world: World, tokens: int, *, temperature: float = 0.0, known: Knowledge | None = None
) -> Tally:
    """Generate `tokens` tokens, in a single generation."""
    if isinstance(policy, Learner):
        policy.begin(known or Knowledge(costs=world.costs()))
    tally = Tally()
    while tally.tokens < tokens:
        _round(policy, world, tally, tokens, temperature)
    return tally


def rounds(policy: Policy, world: World, count: int, tally: Tally) -> None:
    """Run so many rounds of a generation that has begun and does not end."""
    for _ in range(count):
        _round(policy, world, tally, 10**9, 0.0)


def _round(policy: Policy, world: World, tally: Tally, tokens: int, temperature: float) -> None:
    found = world.matches is not None and world.random.random() < world.matches[0]
    matches: dict[str, int] = {} if world.matches is None else {"ngram": 3 * found}
    if world.recycles:
        matches["recycle"] = 1
    state = RoundState(
        round_index=tally.rounds,
        position=world.context + 1 + tally.tokens,
        max_draft_tokens=tokens - tally.tokens - 1,
        draft_len=4,
        draft_effort=1.0,
        verify_effort=1.0,
        options=world.options,
        temperature=temperature,
        is_effort_asked=False,
        matches=matches,
        rows_beside=world.beside,
    )
    plan = policy.plan(state)
    length = min(plan.num_draft_tokens, state.max_draft_tokens)
    signals: list[StepSignals] = []
    drafted = accepted = 0
    draft_s, dense, alive = 0.0, 0.0, True
    drafter = (plan.drafter or "effort") if length else None
    if drafter in ("ngram", "recycle"):
        drafted = min(length, 2) if drafter == "recycle" else length if found else 0
        draft_s, dense = 2e-5, 2e-5 / world.dense_s
        kept = world.recycles if drafter == "recycle" else world.matches[1]
        while accepted < drafted and world.random.random() < kept:
            accepted += 1
    effort: float | None = plan.effort
    windowed = drafter == "effort" and world.is_windowed(plan, state.position)
    whole = world.attends(state.position, windowed=False)
    while drafter == "effort" and drafted < length and effort is not None:
        made = [_step(world, effort, state, drafted, windowed)]
        most = min(plan.at_once if world.at_once and not drafted else 1, length)
        while len(made) < most and made[-1].signals.distribution.margin >= plan.least_margin:
            made.append(_step(world, effort, state, drafted + len(made), windowed))
        tally.efforts[effort] = tally.efforts.get(effort, 0) + len(made)
        draft_s, dense = draft_s + sum(one.signals.seconds for one in made), dense + sum(one.cost for one in made)
        for one in made:
            alive = alive and one.is_right
            accepted += alive
            signals.append(one.signals)
            drafted += 1
            effort = policy.next_step(one.signals) if drafted < length else None
            if effort is None:
                break
    verify = world.verify(world.beside + drafted + 1) * (1 + whole)
    verify_s = world.seconds(verify)
    policy.observe(
        RoundOutcome(
            drafted=drafted,
            accepted=accepted,
            signals=tuple(signals),
            drafter=drafter,
            view="int4" if drafter == "effort" else None,
            context_length=state.position - 1,
            draft_s=draft_s,
            verify_s=verify_s,
            round_s=draft_s + verify_s,
            rows_beside=world.beside,
            draft_share=1 / world.together if signals else 1.0,
        )
    )
    tally.tokens += accepted + 1
    tally.seconds += draft_s + verify_s
    tally.dense += dense + verify
    tally.rounds += 1
    tally.windowed += windowed
    tally.drafted += drafted
    tally.drafters[drafter] = tally.drafters.get(drafter, 0) + 1


@dataclass
class _Step:
    """A draft step: what it shows, its cost in dense steps, and whether the verifier would draw its token."""

    signals: StepSignals
    cost: float
    is_right: bool


def _step(world: World, effort: float, state: RoundState, index: int, windowed: bool) -> _Step:
    margin = world.random.expovariate(1 / world.hardness)
    cost = world.step(effort) * world.verify(world.together) / world.verify(1)
    cost += world.attends(state.position, windowed)
    seconds = world.seconds(cost)
    noise = world.noise(effort) + (world.blind or 0.0) * windowed
    chance = 0.5 * (1 + math.erf(margin / max(noise, 1e-9) / math.sqrt(2)))
    is_right = world.random.random() < chance
    signals = StepSignals(
        index=index,
        position=state.position + index,
        effort=effort,
        context_length=state.position - 1 + index,
        drafter="effort",
        view="int4",
        seconds=seconds,
        distribution=Level(max(0.0, margin + world.random.gauss(0, noise))),
    )
    return _Step(signals, cost, is_right)


def best_fixed(world: World, tokens: int = 6000) -> tuple[float, str]:
    """Gain and name of the best fixed setting in a world, not drafting included."""
    from specdec.policies.fixed import FixedPolicy

    best = (1.0, "plain")
    for effort in (0.2, 0.35, 0.5, 0.7, 1.0):
        for length in (1, 2, 3, 4, 6, 8, 12, 16):
            world.random.seed(1)
            best = max(best, (run(FixedPolicy(length, effort), world, tokens).rate, f"{length} at {effort}"))
    return best
