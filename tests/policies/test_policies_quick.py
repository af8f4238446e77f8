"""What makes `goodput` quick changes none of its decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_goodput import best_length as plain_best_length
from plain_goodput import make_plain
from random_rounds import decisions
from specdec.policies.goodput.acceptance import LONGEST_MATCH, MatchAcceptance
from specdec.policies.goodput.costs import MOST_ROWS
from specdec.policies.goodput.length import best_length, least_row
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.goodput.related import View


@pytest.mark.parametrize("first", range(0, 96, 16))
def test_decisions_are_those_of_the_plain_form(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans, efforts of further steps, and what is learnt, digit by digit."""
    quick = [list(decisions(GoodputPolicy, seed)) for seed in range(first, first + 16)]
    make_plain(monkeypatch)
    for seed, found in enumerate(quick, first):
        wanted = list(decisions(GoodputPolicy, seed))
        assert len(found) > 1
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert one == other, (seed, number)


@given(
    st.lists(st.floats(-0.05, 1.2), min_size=MOST_ROWS - 1, max_size=MOST_ROWS - 1), st.floats(0.0, 1.0),
    st.floats(0.0, 1.0), st.floats(0.2, 3.0), st.integers(0, 32),
)  # fmt: skip
def test_no_length_is_left_out_that_could_be_the_best(
    rows: list[float], step: float, acceptance: float, rate: float, limit: int
) -> None:
    verify = [0.0, 1.0]
    for row in rows:
        verify.append(max(0.1, verify[-1] + row))
    found = best_length(verify, step, acceptance, rate, limit, least_row(verify))
    assert found == best_length(verify, step, acceptance, rate, limit)
    wanted = plain_best_length(verify, step, acceptance, rate, limit)
    if found != wanted:  # a length that is as good, or one after a stretch that loses a whole token
        assert found[1] - rate * found[2] <= wanted[1] - rate * wanted[2] + 1e-9


@given(st.integers(0, 80), st.integers(0, 40))
def test_chances_of_a_draft_are_those_of_its_tokens(match: int, most: int) -> None:
    matches = MatchAcceptance()
    matches.learn(3, 8, 5)
    assert matches.run(match, most) == [matches.chances[min(match + k, LONGEST_MATCH)] for k in range(most)]


@given(st.lists(st.sampled_from([0.2, 0.35, 0.5, 0.7, 1.0]), unique=True), st.floats(0.1, 1.0))
def test_the_nearest_known_efforts(efforts: list[float], effort: float) -> None:
    view = View(common=0.1)
    for number, one in enumerate(efforts):
        view.add(one, 1.0 + number, 0.1)
    below, above = view.around(effort)
    assert below == max((one for one in efforts if one <= effort), default=None)
    assert above == min((one for one in efforts if one >= effort), default=None)
    assert all(view.cost(one) == 1.0 + number for number, one in enumerate(efforts))


def test_a_row_that_could_cost_less_than_nothing_is_no_obstacle() -> None:
    verify = [0.0, 1.0, 1.3, 1.1, *[1.1 + 0.5 * n for n in range(1, MOST_ROWS - 2)]]
    assert least_row(verify) == pytest.approx(-0.2)
    assert best_length(verify, 0.1, 0.6, 1.0, 16, least_row(verify)) == best_length(verify, 0.1, 0.6, 1.0, 16)
