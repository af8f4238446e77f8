"""The default policy in long contexts, where drafts may attend to a window or to everything: it takes the better."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from policy_simulator import LONG, MODEL, Tally, World, run
from specdec.policies.goodput.acceptance import UNKNOWN, LogOdds
from specdec.policies.goodput.costs import CostModel
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.goodput.ways import Reach, Way, ways_of

from specdec.engine.policy import CostTable, DraftOption, Knowledge, RoundState

# Attention of a row to 1,000 positions, in dense steps of an empty context: much (SmolLM2 on two cores), some, next to
# none. What a window costs in acceptance: nothing, a little, most of it.
WORLDS = {
    "attention is dear": ({"attention": 2.5e-4, "blind": 0.3}, "windowed"),
    "attention is dear, windows are bad": ({"attention": 2.5e-4, "blind": 3.0}, "windowed"),
    "attention is some": ({"attention": 1e-4, "blind": 0.3}, "windowed"),
    "attention is cheap": ({"attention": 1e-5, "blind": 0.0}, None),
    "attention is cheap, windows are bad": ({"attention": 1e-5, "blind": 3.0}, "whole"),
    "attention is nothing, windows are worse": ({"attention": 0.0, "blind": 1.5}, "whole"),
}


def world_of(name: str, *, seed: int, reach: bool | None = None, **more) -> World:
    return World(
        **{"context": 8000, "hardness": 5.0, "jitter": 0.05, **WORLDS[name][0], **more}, seed=seed, reach=reach
    )


def answers(world: World, tokens: int, count: int = 1) -> Tally:
    """So many answers, one after the other, of a model whose costs were measured after a short text."""
    known, tally = Knowledge(costs=world.costs()), Tally()
    for _ in range(count):
        one = run(GoodputPolicy(), world, tokens, known=known)
        tally.tokens, tally.dense = tally.tokens + one.tokens, tally.dense + one.dense
        tally.rounds, tally.windowed = tally.rounds + one.rounds, tally.windowed + one.windowed
    return tally


@pytest.mark.parametrize("name", WORLDS)
def test_the_better_of_window_and_whole_is_taken(name):
    """Within 5% of what the better gives alone, in four answers of 200 tokens; what is found out is remembered."""
    rates: dict[bool | None, float] = {}
    shares = []
    for reach in (None, True, False):
        tallies = [answers(world_of(name, seed=seed, reach=reach), 200, 4) for seed in range(6)]
        rates[reach] = sum(tally.rate for tally in tallies)
        shares += [tally.windowed / tally.rounds for tally in tallies] if reach is None else []
    assert rates[None] > 0.95 * max(rates[True], rates[False])
    better = WORLDS[name][1]
    if better is not None:
        assert better == ("windowed" if rates[True] > rates[False] else "whole")
        share = statistics.median(shares)  # one in ten is found out late
        assert share > 0.85 if better == "windowed" else share < 0.15


@pytest.mark.parametrize("name", WORLDS)
def test_short_answers_pay_little_for_finding_out(name):
    """The first answer of a process, 64 tokens: within 10% of the better, and far from the worse."""
    rates = {
        reach: sum(answers(world_of(name, seed=seed, reach=reach), 64).rate for seed in range(24))
        for reach in (None, True, False)
    }
    assert rates[None] > 0.9 * max(rates[True], rates[False])


def test_another_text_may_want_the_other():
    worlds = [world_of("attention is cheap", seed=seed, blind=0.0) for seed in range(5)]
    known = [Knowledge(costs=world.costs()) for world in worlds]

    def share(blind: float) -> float:
        """Of windows in the fourth of four answers, the mean of several runs."""
        shares = []
        for world, one in zip(worlds, known, strict=True):
            world.blind = blind
            tallies = [run(GoodputPolicy(), world, 200, known=one) for _ in range(4)]
            shares.append(tallies[-1].windowed / tallies[-1].rounds)
        return sum(shares) / len(shares)

    easy, hard = share(0.0), share(4.0)
    assert easy > 0.6
    assert hard < 0.2
    assert share(0.0) > hard + 0.2


def state(position: int, option: DraftOption, **more) -> RoundState:
    return RoundState(
        round_index=0, position=position, max_draft_tokens=50, draft_len=4, draft_effort=0.5, verify_effort=1.0,
        options=(option,), is_effort_asked=False, **more,
    )  # fmt: skip


def test_there_is_a_choice_in_long_contexts_only():
    choosing = DraftOption("effort", "int4", takes_effort=True, windowed_from=LONG)
    for option, position, expected in (
        (MODEL, 9000, None),  # the caller named a window, or the runtime has none
        (choosing, LONG, None),  # LONG - 1 tokens are in the cache
        (choosing, LONG + 1, True),
        (choosing, 9000, True),
    ):
        policy = GoodputPolicy(explore=0)
        policy.begin(Knowledge(costs=World().costs()))
        plan = policy.plan(state(position, option))
        assert plan.num_draft_tokens
        assert plan.windowed is expected
    lengths = [ways_of(choosing, state(position, choosing)) for position in (2049, 4096, 4097, 8192, 8193, 16_385)]
    assert [[way.reach.context for way in ways] for ways in lengths] == [
        [3072] * 2, [3072] * 2, [6144] * 2, [6144] * 2, [12_288] * 2, [24_576] * 2,
    ]  # fmt: skip
    assert [way.reach.windowed for way in lengths[0]] == [True, False]


def test_a_model_that_has_only_read_short_texts_expects_windows_to_be_cheaper_the_longer_the_text():
    costs = CostModel(World().costs())
    short = costs.draft(Way("effort", "int4"), 0.5)
    lengths = (3072, 6144, 12_288)
    windowed = [costs.draft(Way("effort", "int4", Reach(length, windowed=True)), 0.5) for length in lengths]
    whole = [costs.draft(Way("effort", "int4", Reach(length)), 0.5) for length in lengths]
    assert short < whole[0] < whole[1] < whole[2] < 1
    assert all(one < other for one, other in zip(windowed, whole, strict=True))
    assert windowed[0] > windowed[1] > windowed[2]


def test_costs_are_kept_apart_by_the_length_of_the_context():
    costs = CostModel(World().costs(spread=0.05))
    near, far = (Way("effort", "int4", Reach(length, windowed=True)) for length in (3072, 6144))
    guessed = costs.draft(far, 0.5)
    assert not costs.has_seen_reach(far)
    for _ in range(20):
        costs.observe_verify(1, 0.02)  # twice a pass after a short text
        costs.observe_draft(near, 0.5, 0.001)
    assert costs.draft(near, 0.5) == pytest.approx(0.05, rel=0.1)
    assert costs.draft(far, 0.5) < guessed  # the shorter context tells, until the longer one is seen
    assert costs.has_seen_reach(far)
    assert not costs.has_seen_reach(Way("effort", "int4", Reach(3072)))
    table = costs.table()
    assert table is not None
    assert table.draft_s["effort", "int4", 0.5] / table.verify_s[1] == pytest.approx(0.2, rel=0.1)  # after a short
    assert set(table.draft_s) == {("effort", "int4", effort) for effort in (0.2, 0.5, 1.0)}


@pytest.mark.parametrize("attention", [1e-5, 1e-4, 2.5e-4])
def test_one_step_in_a_long_context_tells_what_others_cost(attention):
    """The costs of steps that were not seen follow from those in short contexts and from one constant."""
    costs = CostModel(World(step=lambda effort: 0.45 + 0.3 * effort).costs(spread=0.05))
    seen = Way("effort", "int4", Reach(6144, windowed=True))
    for _ in range(20):
        costs.observe_verify(1, 0.01)
        costs.observe_draft(seen, 0.5, 0.01 * seen.reach.cost(0.6, attention))
    for reach, tolerance in ((seen.reach, 0.1), (Reach(12_288, windowed=True), 0.2), (Reach(6144), 0.3)):
        for effort, short in ((0.2, 0.51), (1.0, 0.75)):
            guessed = costs.draft(Way("effort", "int4", reach), effort)
            assert guessed == pytest.approx(reach.cost(short, attention), rel=tolerance)


def test_nothing_measured_is_no_obstacle():
    costs = CostModel(CostTable())
    assert 0 < costs.draft(Way("effort", "int4", Reach(6144, windowed=True)), 0.5) < 1


@pytest.mark.parametrize("true", [-0.5, 0.4, 2.5])
def test_what_a_window_costs_in_acceptance_is_recovered(true):
    """From tokens of both in equal shares; `true` log-odds more of the tokens without one are kept."""
    gaps = []
    for seed in range(6):
        rng, learnt = random.Random(seed), LogOdds(0.1)
        for number in range(400):
            lean = 0.5 if number % 2 else -0.5
            learnt.learn(0.5, UNKNOWN, rng.random() < 1 / (1 + math.exp(-1.0 - true * lean)), lean)
        odds = [math.log(chance / (1 - chance)) for lean in (0.5, -0.5) for chance in [learnt.chance(0.5, 3, lean)]]
        gaps.append(odds[0] - odds[1])
    # 400 tokens of chances of 0.4 to 0.9 have a standard error of 0.2 to 0.3; six runs, 0.1; and the guess draws.
    assert sum(gaps) / len(gaps) == pytest.approx(true, abs=0.35)


def test_the_summary_says_which_drafts_had_a_window():
    world = world_of("attention is cheap", seed=2)
    policy = GoodputPolicy()
    run(policy, world, 600, known=Knowledge(costs=world.costs()))
    told = policy.summary()["acceptance_learnt"]
    assert any(name.endswith(" windowed") for name in told)
    assert any(not name.endswith(" windowed") for name in told)
