"""What `goodput` learns of acceptance: `LogOdds` recovers the chances that tokens were made with."""

from __future__ import annotations

import math
import random

import pytest
from specdec.policies.goodput.acceptance import (
    CLASSES,
    LONGEST_MATCH,
    UNKNOWN,
    DraftAcceptance,
    LogOdds,
    MatchAcceptance,
)
from specdec.policies.goodput.costs import CostModel
from specdec.policies.goodput.learnt import Learnt
from specdec.policies.goodput.ways import Way

from specdec.engine.policy import CostTable

TRUE_EFFORT = {0.2: -0.5, 0.5: 0.8, 0.7: 1.3, 1.0: 1.6}


def true_chance(effort: float, signal: int) -> float:
    return 1 / (1 + math.exp(-TRUE_EFFORT[effort] - 0.4 * (signal - 4)))


def taught(tokens: int, efforts: tuple[float, ...] = tuple(TRUE_EFFORT), shift: float = 0.0, seed: int = 1) -> LogOdds:
    """After so many tokens of efforts and classes in equal shares; `shift` is added to the log-odds of all."""
    rng = random.Random(seed)
    learnt = LogOdds(0.1)
    for _ in range(tokens):
        effort, signal = rng.choice(efforts), rng.randrange(CLASSES)
        odds = math.log(true_chance(effort, signal) / (1 - true_chance(effort, signal))) + shift
        learnt.learn(effort, signal, rng.random() < 1 / (1 + math.exp(-odds)))
    return learnt


def test_chances_are_recovered_by_effort_and_class():
    runs = [taught(3000, seed=seed) for seed in range(8)]
    for effort in TRUE_EFFORT:
        for signal in range(CLASSES):
            # The text's own part goes on moving, by about 0.3 of log-odds or 0.07 of a chance: 0.03 in the mean of 8;
            # as much again for what classes and efforts are drawn towards.
            mean = sum(run.chance(effort, signal) for run in runs) / len(runs)
            assert mean == pytest.approx(true_chance(effort, signal), abs=0.07)


@pytest.mark.parametrize("view", ["nested", "own"])
def test_a_models_own_bits_are_guessed_to_agree_more_than_copies(view):
    learnt = Learnt(CostModel(CostTable()))
    own, copies = learnt.accepted(Way("effort", view)), learnt.accepted(Way("effort", "int4"))
    for effort in (0.5, 0.7, 1.0):
        assert copies.after.mean(effort) + 0.04 < own.after.mean(effort) < 0.97
        assert own.own.mean(effort) > copies.own.mean(effort)
    means = [own.after.mean(effort) for effort in (0.2, 0.35, 0.5, 0.7, 1.0)]
    assert means == sorted(means)
    assert DraftAcceptance.of("unheard-of").after.mean(0.5) == DraftAcceptance().after.mean(0.5)


def test_the_mean_is_that_over_the_classes_as_they_occur():
    learnt = taught(4000)
    for effort in TRUE_EFFORT:
        mean = sum(learnt.chance(effort, signal) for signal in range(CLASSES)) / CLASSES
        assert learnt.mean(effort) == pytest.approx(mean, abs=0.03)  # the classes came in about equal shares


def test_an_effort_that_was_never_used_follows_those_that_were():
    fresh, hard = LogOdds(0.1), taught(400, (0.5, 0.7), shift=-1.5)
    assert hard.mean(1.0) < fresh.mean(1.0) - 0.1
    assert hard.mean(0.2) < fresh.mean(0.2)
    assert hard.mean(1.0, 1.0) > hard.mean(1.0)  # and remains uncertain


def test_using_an_effort_makes_it_certain():
    learnt = taught(1500)
    for effort in TRUE_EFFORT:
        doubt, doubt_before = (one.mean(effort, 1.0) - one.mean(effort) for one in (learnt, LogOdds(0.1)))
        assert doubt < doubt_before


def test_a_new_text_forgets_the_text_and_not_the_efforts():
    learnt = taught(1500)
    before = learnt.mean(1.0) - learnt.mean(0.2)
    for _ in range(40):
        learnt.learn(0.7, UNKNOWN, is_kept=False)
    gloomy = learnt.mean(0.7)
    learnt.new_text()
    assert learnt.mean(0.7) > gloomy
    assert learnt.mean(1.0) - learnt.mean(0.2) == pytest.approx(before, abs=0.1)


def test_matches_are_learnt_by_length_and_long_ones_together():
    learnt = MatchAcceptance()
    before = list(learnt.chances)
    assert before == sorted(before)
    assert before[LONGEST_MATCH] > 0.95
    for _ in range(60):
        learnt.learn(18, drafted=3, accepted=0)  # one judged token, of the class of 16 to 23
    assert learnt.chances[16] < 0.1
    assert learnt.chances[23] < 0.1
    assert learnt.chances[:16] == before[:16]
    assert learnt.chances[24:] == before[24:]
    for _ in range(60):
        learnt.learn(22, drafted=2, accepted=2)  # the second token follows a match of 23
    assert learnt.chances[16] == pytest.approx(learnt.chances[23], abs=0.01)
    assert learnt.chances[16] > 0.9
    learnt.learn(1000, drafted=4, accepted=1)
    assert learnt.chances[LONGEST_MATCH] < before[LONGEST_MATCH]
    assert learnt.hopeful(1000, 0.7) > learnt.chances[LONGEST_MATCH]
    learnt.new_text()
    assert learnt.chances[16] < 0.97
