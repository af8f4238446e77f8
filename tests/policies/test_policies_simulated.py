"""Policies against an engine of known costs and acceptance: what they settle on, and what their own code takes."""

from __future__ import annotations

import sys

import pytest
from policy_simulator import LOOKUP, MODEL, RECYCLE, Level, World, best_fixed, run
from specdec.policies.goodput.costs import CostModel
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.goodput.ways import Way
from specdec.policies.registry import create

from specdec.engine.policy import (
    CostTable,
    DraftOption,
    DraftPlan,
    Knowledge,
    Learner,
    Policy,
    Reporter,
    RoundOutcome,
    RoundState,
    StepSignals,
)

WORLDS = {
    "typical": {},
    "easy": {"hardness": 8.0},
    "hard": {"hardness": 1.0, "noise": lambda effort: 1.0 + 2 * (1 - effort)},
    "steep efforts": {"hardness": 4.0, "noise": lambda e: 0.3 + 8 * (1 - e) ** 2, "step": lambda e: 0.15 + 0.1 * e},
    "rows cost": {"verify": lambda rows: 1 + 0.35 * (rows - 1)},
    "noisy": {"jitter": 0.2, "spikes": 0.02},
    "nothing pays": {"hardness": 0.3, "noise": lambda _: 3.0, "step": lambda effort: 0.4 + 0.6 * effort},
}


@pytest.mark.parametrize("name", WORLDS)
def test_goodput_is_as_good_as_the_best_fixed_setting(name):
    """Within 3% of the best of a grid that was tried out beforehand, trials included; often better: it sees signals.

    In the hard world, where efforts hardly differ, a little less: what they differ by is not worth finding out.
    """
    world = World(**WORLDS[name])
    best, setting = best_fixed(world, 4000)
    world.random.seed(2)
    policy = GoodputPolicy()
    assert run(policy, world, 1000).rate > 0.9 * best, setting  # while it still learns
    assert run(policy, world, 5000).rate > (0.92 if name == "hard" else 0.97) * best, setting


@pytest.mark.parametrize("name", WORLDS)
def test_drafting_at_once_costs_goodput_little(name):
    """What is drafted and dropped, or at an effort chosen beforehand, costs less than 4% of the tokens a second."""
    rates = []
    for at_once in (False, True):
        world = World(**WORLDS[name], at_once=at_once)
        world.random.seed(2)
        policy = GoodputPolicy()
        run(policy, world, 1000)
        rates.append(run(policy, world, 5000).rate)
    assert rates[1] > 0.96 * rates[0]


@pytest.mark.parametrize("name", ["typical", "easy", "hard"])
def test_goodput_needs_no_measured_costs(name):
    world = World(**WORLDS[name], jitter=0.05)
    best, setting = best_fixed(world, 4000)
    world.random.seed(2)
    policy = GoodputPolicy()
    run(policy, world, 1500, known=Knowledge())
    assert run(policy, world, 5000, known=policy._knowledge).rate > 0.92 * best, setting


def test_goodput_parks_when_nothing_pays_and_says_so():
    world = World(**WORLDS["nothing pays"])
    policy = GoodputPolicy()
    tally = run(policy, world, 3000)
    assert tally.rate > 0.97  # 1 is plain decoding: what trials may cost is less than 3%
    assert tally.drafters[None] > 0.95 * tally.rounds
    spell = max(policy.summary()["parked"], key=lambda one: one["rounds"])
    assert spell["rounds"] > 100
    assert any(word in spell["reason"] for word in ("predicted", "promised"))


def test_goodput_drafts_again_when_text_gets_easy():
    world = World(**WORLDS["nothing pays"])
    policy = GoodputPolicy()
    run(policy, world, 1500)
    world.noise, world.hardness, world.step = (lambda _: 0.3), 6.0, (lambda effort: 0.1 + 0.2 * effort)
    policy = _next_generation(policy)
    run(policy, world, 300)
    assert run(policy, world, 1500, known=policy._knowledge).rate > 1.5


def _next_generation(policy: GoodputPolicy) -> GoodputPolicy:
    fresh = GoodputPolicy()
    fresh.begin(policy._knowledge)
    return fresh


def test_goodput_remembers_across_generations():
    world, rates = World(hardness=8.0), []
    for seed in range(4):  # 60 tokens say little
        world.random.seed(seed)
        first = GoodputPolicy()
        run(first, world, 2000)
        second = GoodputPolicy()
        rates.append(run(second, world, 60, known=first._knowledge).rate)
        assert second._learnt is first._learnt
    assert sum(rates) / 4 > 0.9 * best_fixed(world, 3000)[0]


def test_goodput_uses_a_lookup_where_it_is_right_and_leaves_it_where_it_is_wrong():
    for chance, shares in ((0.95, (0.3, 1.0)), (0.1, (0.0, 0.05))):
        world = World(matches=(0.5, chance))
        tally = run(GoodputPolicy(), world, 4000)
        assert shares[0] <= tally.drafters.get("ngram", 0) / tally.rounds <= shares[1]
    world = World(matches=(0.5, 0.95))
    assert run(GoodputPolicy(), world, 4000).rate > 1.1 * run(GoodputPolicy(), World(), 4000).rate


def test_goodput_follows_a_machine_that_changes():
    """Verify rows and draft steps become dear in the middle of an answer: drafts get shorter."""
    world = World()
    policy = GoodputPolicy()
    before = run(policy, world, 2000)
    world.verify, world.step = (lambda rows: 1 + 0.4 * (rows - 1)), (lambda effort: 0.1 + 0.4 * effort)
    run(policy, world, 1000, known=policy._knowledge)
    after = run(policy, world, 3000, known=policy._knowledge)
    assert after.drafted / after.rounds < 0.8 * before.drafted / before.rounds
    assert after.rate > 0.92 * best_fixed(world, 4000)[0]


def test_goodput_with_one_effort_uses_no_other():
    tally = run(GoodputPolicy(effort=0.5), World(), 1000)
    assert set(tally.efforts) == {0.5}


def test_goodput_keeps_to_the_effort_that_the_caller_named():
    policy = GoodputPolicy()
    policy.begin(Knowledge())
    state = RoundState(
        round_index=0,
        position=9,
        max_draft_tokens=50,
        draft_len=4,
        draft_effort=0.3,
        verify_effort=1.0,
        options=(MODEL,),
    )
    assert policy.plan(state).effort == 0.3


def test_a_lookup_that_cannot_tell_goes_on_where_its_last_was_kept_whole():
    """What is being copied is a long match, until a token differs."""
    policy = GoodputPolicy()
    policy.begin(Knowledge(costs=CostTable(verify_s={1: 1.0, 3: 1.4, 5: 1.8, 9: 2.6})))
    lookup = DraftOption("replay", None, takes_effort=False)
    state = RoundState(
        round_index=0, position=9, max_draft_tokens=90, draft_len=4, draft_effort=1.0, verify_effort=1.0,
        options=(lookup,), is_effort_asked=False, named=frozenset({"replay"}),
    )  # fmt: skip

    def expected(missing: int = 0) -> float:
        """Tokens that the next round is expected to bring; the verifier then refuses so many of its last ones."""
        length, tokens = policy.plan(state).num_draft_tokens, policy._now.tokens
        seconds = 1.0 + 0.2 * length
        policy.observe(
            RoundOutcome(
                drafted=length, accepted=length - missing, signals=(), drafter="replay", view=None, context_length=8,
                draft_s=0.001, verify_s=seconds, round_s=seconds + 0.001,
            )
        )  # fmt: skip
        return tokens

    first, second, third = expected(), expected(), expected(missing=1)
    assert first <= second < third
    assert expected() < third


def test_drafts_are_the_longer_the_longer_the_match():
    """Costs of a small CPU: a row costs 0.05 to 0.2 dense steps."""
    for verify, matches in (
        ({1: 1.0, 3: 1.2, 5: 1.3, 9: 1.9}, (1, 2, 4, 8, 20)),
        ({1: 1.0, 9: 3.4}, (1, 3, 6, 12, 48)),
    ):
        lengths = []
        for match in matches:
            policy = GoodputPolicy(explore=0)
            policy.begin(Knowledge(costs=CostTable(verify_s=verify)))
            state = RoundState(
                round_index=0, position=9, max_draft_tokens=90, draft_len=4, draft_effort=1.0, verify_effort=1.0,
                options=(LOOKUP,), is_effort_asked=False, matches={"ngram": match},
            )  # fmt: skip
            lengths.append(policy.plan(state).num_draft_tokens)
        assert lengths == sorted(lengths)
        assert lengths[0] <= 2
        assert lengths[-1] >= 8


def recycled(matches: dict[str, int], options: tuple[DraftOption, ...], rows: float = 0.05) -> DraftPlan:
    policy = GoodputPolicy(explore=0)
    policy.begin(Knowledge(costs=CostTable(verify_s={1: 1.0, 9: 1 + 8 * rows})))
    state = RoundState(
        round_index=0, position=9, max_draft_tokens=90, draft_len=4, draft_effort=1.0, verify_effort=1.0,
        options=options, is_effort_asked=False, matches=matches,
    )  # fmt: skip
    return policy.plan(state)


def test_tokens_are_recycled_where_no_longer_match_pays_and_rows_are_cheap():
    options = (LOOKUP, RECYCLE)
    for match, drafter in ((0, "recycle"), (2, "ngram"), (9, "ngram")):
        for order in (options, options[::-1]):
            plan = recycled({"ngram": match, "recycle": 1}, order)
            assert plan.drafter == drafter
    assert 1 <= recycled({"ngram": 0, "recycle": 1}, options).num_draft_tokens <= 2
    assert recycled({"ngram": 0, "recycle": 1}, options, rows=0.4).num_draft_tokens == 0
    assert recycled({"ngram": 0, "recycle": 0}, options).num_draft_tokens == 0


def test_recycling_pays_where_rows_are_cheap_and_costs_next_to_nothing_where_they_are_dear():
    for rows, least in ((0.03, 1.1), (0.1, 1.02), (0.3, 0.99)):
        rates = []
        for seed in range(4):
            verify = {count: 1 + rows * (count - 1) for count in range(99)}.__getitem__
            world = World(matches=(0.0, 0.0), recycles=0.2, verify=verify, drafts=False, seed=seed)
            rates.append(run(GoodputPolicy(), world, 1000).rate)
        assert min(rates) > 0.99
        assert sum(rates) / len(rates) > least


MANY_ROWS = (*range(1, 34), 65, 513)  # measured where several sequences share passes


def drafted_beside(beside: int, verify, policy: str = "goodput", **values) -> float:
    """Tokens drafted a round, once the policy knows the machine."""
    world = World(verify=verify, beside=beside, **values)
    world.random.seed(5)
    known = Knowledge(costs=world.costs(counts=MANY_ROWS, spread=0.01))
    run(create(policy), world, 600, known=known)
    tally = run(create(policy), world, 2000, known=known)
    return tally.drafted / tally.rounds


def test_goodput_drafts_less_beside_others_where_more_rows_are_dear():
    """A pass over 16 rows costs little more than one over a single row here; every row after that is dear."""

    def knee(rows: int) -> float:
        return 1 + 0.002 * rows + 0.2 * max(0, rows - 16)

    alone, few, some, many = (drafted_beside(beside, knee) for beside in (0, 4, 8, 31))
    assert alone > few > some > 3
    assert many < 0.1 * alone


@pytest.mark.parametrize("beside", [1, 7, 33, 480])
@pytest.mark.parametrize("matches", [None, (0.5, 0.9)])
def test_goodput_drafts_the_same_beside_others_where_rows_are_free(beside, matches):
    assert drafted_beside(beside, lambda _: 1.0, matches=matches) == drafted_beside(0, lambda _: 1.0, matches=matches)


@pytest.mark.parametrize(("beside", "further"), [(3, 0.1), (15, 0.02)])
def test_goodput_drafts_less_where_the_others_wait_for_its_drafts(beside, further):
    def verify(rows: int) -> float:
        return 1 + further * (rows - 1)

    alone, together = (drafted_beside(beside, verify, drafts_alone=alone) for alone in (True, False))
    assert together > 1
    assert alone < 0.2 * together
    cheap = drafted_beside(beside, verify, drafts_alone=True, step=lambda effort: 0.005 * (1 + effort))
    assert cheap > 1  # next to nothing is worth waiting for


def test_goodput_drafts_nothing_where_every_row_costs_as_much_as_the_first():
    """A row that is kept with a chance below 1 then brings less than another sequence's plain row."""
    assert drafted_beside(31, lambda rows: float(rows)) < 0.1


def test_rows_beside_mean_nothing_to_other_policies():
    def steep(rows: int) -> float:
        return float(rows)

    for policy in ("fixed:length=4,effort=0.5", "confidence", "entropy", "heuristic", "effort-entropy"):
        assert drafted_beside(40, steep, policy) == drafted_beside(0, steep, policy)


def test_goodput_counts_the_time_that_its_rows_take_from_others():
    """The real gain is this sequence's own; the predicted one, by which it decides, is lower by that time."""
    world = World(verify=lambda rows: 1 + 0.01 * rows, beside=20)
    policy = GoodputPolicy()
    run(policy, world, 1500, known=Knowledge(costs=world.costs(counts=MANY_ROWS)))
    told = policy.summary()
    assert told["plain_step_s"] == pytest.approx(world.dense_s * world.verify(21), rel=0.02)
    assert 1.3 < told["predicted_gain"] < told["estimated_gain"]


def test_goodput_temperatures_are_learnt_apart():
    policy, memory = GoodputPolicy(), {}
    run(policy, World(), 200, known=Knowledge(memory=memory))
    run(GoodputPolicy(), World(), 200, temperature=1.0, known=Knowledge(memory=memory))
    assert len([key for key in memory if len(key) == 3]) == 2


@pytest.mark.parametrize("matches", [None, (0.4, 0.7)])
def test_goodput_takes_little_work_itself(matches):
    """In calls of Python functions a token, beyond those of the simulator: the same on every machine."""

    def calls_per_token(policy: Policy) -> float:
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            run(policy, World(matches=matches), 2000)
        finally:
            sys.setprofile(None)
        return calls / 2000

    assert calls_per_token(GoodputPolicy()) - calls_per_token(create("fixed:length=4,effort=0.5")) < 40


@pytest.mark.parametrize(
    "spec", ["auto", "goodput", "bandit", "confidence", "effort-entropy", "entropy", "fixed", "heuristic"]
)
def test_every_policy_drafts_and_gains_in_an_easy_world(spec):
    policy = create(spec)
    assert isinstance(policy, Policy)
    tally = run(policy, World(hardness=9.0), 1500)
    assert tally.tokens == pytest.approx(1500, abs=25)  # the last round may overshoot
    assert tally.rate > 1.4


def test_the_bandit_settles_on_the_best_arm():
    world = World(hardness=8.0)
    policy = create("bandit:arms=fixed:length=1+fixed:length=6+fixed:length=16")
    run(policy, world, 4000)
    blocks = {spec: one["blocks"] for spec, one in policy.summary().items()}
    assert max(blocks, key=blocks.get) == "fixed:length=6"
    assert blocks["fixed:length=6"] > sum(blocks.values()) / 2


def test_the_bandits_arms_learn_and_it_remembers():
    knowledge = Knowledge()
    policy = create("bandit:arms=goodput+fixed")
    assert isinstance(policy, Learner)
    assert isinstance(policy, Reporter)
    run(policy, World(), 500, known=knowledge)
    assert ("goodput", "costs") in knowledge.memory
    again = create("bandit:arms=goodput+fixed")
    again.begin(knowledge)
    assert again.summary() == policy.summary()


def signals(margin: float, index: int = 0) -> StepSignals:
    return StepSignals(
        index=index,
        position=9,
        effort=1.0,
        context_length=8,
        drafter="effort",
        view="int4",
        seconds=0.003,
        distribution=Level(margin),
    )


def test_costs_follow_medians_and_not_stalls():
    costs = CostModel(CostTable(verify_s={1: 0.01, 3: 0.012, 5: 0.013, 9: 0.019}))
    assert costs.verify[2] == pytest.approx(1.1)
    assert costs.verify[13] == pytest.approx(1.9 + 4 * 0.15)
    for index in range(400):
        costs.observe_verify(5, 0.5 if index % 20 == 0 else 0.014)
    assert costs.scale * costs.verify[5] == pytest.approx(0.014, rel=0.05)  # a mean would say 0.038
    for _ in range(200):
        costs.observe_draft(Way("effort", "int4"), 1.0, 0.004)
    assert costs.scale * costs.draft(Way("effort", "int4"), 1.0) == pytest.approx(0.004, rel=0.05)


def test_costs_without_a_measurement_come_from_the_first_rounds():
    costs = CostModel(CostTable())
    costs.observe_verify(1, 0.02)
    assert costs.seconds_of_dense_step() == 0.02
    for _ in range(50):
        costs.observe_verify(5, 0.04)
    # A part of every error goes to all costs alike, where it stays until one row is seen again.
    assert costs.verify[5] / costs.verify[1] == pytest.approx(2.0, rel=0.12)
    assert costs.verify[4] > 1.3 + 0.1  # neighbours go along


def test_costs_beside_other_rows():
    costs = CostModel(CostTable(verify_s={1: 1.0, 3: 1.2, 5: 1.6, 9: 2.0, 33: 6.8, 65: 16.4}))
    assert costs.beside(0) is costs.verify  # alone nothing changes, to the bit
    for beside in (1, 4, 8, 20):
        prices = costs.beside(beside)
        plain = costs.verify[beside + 1] / (beside + 1)
        assert len(prices) == len(costs.verify)
        assert prices[1] == costs.verify[1]
        for rows in range(1, 34 - beside):
            extra = costs.verify[beside + rows] - costs.verify[beside + 1]
            assert prices[rows] == pytest.approx(1 + extra / plain)
    # Beyond the rows that are told apart every further one costs what the measured passes there say: 0.3.
    assert costs.beside(32)[2] == pytest.approx(1 + 0.3 * 33 / 6.8)
    assert costs.beside(480)[9] == pytest.approx(1 + 8 * 0.3 * 481 / (6.8 + 0.3 * 448))


def test_costs_never_fall_with_rows_below_a_plain_step():
    costs = CostModel(CostTable(verify_s={1: 1.0, 3: 2.0, 5: 1.0, 9: 0.5}))  # as noise may have it
    for beside in (1, 2, 5, 40):
        assert all(price >= costs.verify[1] for price in costs.beside(beside)[1:])


def test_passes_over_many_rows_teach_what_a_further_row_costs():
    costs = CostModel(CostTable(verify_s={1: 0.01, 33: 0.02}))
    before = costs.seconds_of_plain_step(99)
    for index in range(300):
        costs.observe_verify(1, 0.01)
        costs.observe_verify(60 + index % 80, 0.02 + 0.001 * (27 + index % 80))
    assert costs.seconds_of_plain_step(0) == costs.seconds_of_dense_step() == pytest.approx(0.01, rel=0.1)
    assert costs.seconds_of_plain_step(99) == pytest.approx(0.02 + 0.001 * 67, rel=0.15)
    assert before < 0.06


def test_costs_can_begin_with_a_pass_over_many_rows():
    costs = CostModel(CostTable())
    costs.observe_verify(100, 0.5)
    assert costs.seconds_of_plain_step(99) == pytest.approx(0.5)
