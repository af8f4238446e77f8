"""Laws of tier selection: a prefix, deterministic, independent of neighbours, within one tier of the effort asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specdec.kernels.reference.selection import select_tiers, weights_to_take

from specdec.errors import InvalidArgumentError

TIER_SIZES = [(16,), (4, 4, 4, 4), (2, 2, 4, 8), (8, 56), (3, 3, 3, 3, 4)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """An activation row, falling scores and tier sizes; few distinct values, so that ties and zeros are common."""
    sizes = draw(st.sampled_from(TIER_SIZES))
    inputs = draw(st.sampled_from([1, 2, 7, 33, 64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        v = rng.choice(np.array([-2, -1, -0.0, 0, 1, 2], np.float32), inputs)
        scores = rng.choice(np.array([0, 0.5, 1], np.float32), (inputs, len(sizes)))
    else:
        v = rng.standard_normal(inputs, dtype=np.float32)
        scores = rng.random((inputs, len(sizes)), dtype=np.float32)
    return v, -np.sort(-scores, axis=1), sizes


EFFORTS = st.one_of(st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), st.floats(1e-6, 1.0))


def literal_selection(v: np.ndarray, scores: np.ndarray, sizes: tuple[int, ...], effort: float) -> list[set[int]]:
    """The definition word by word: the set of tiers taken of every input."""
    inputs, tiers = scores.shape
    order = sorted(
        ((float(np.float32(abs(v[i])) * scores[i, k]), k, i) for i in range(inputs) for k in range(tiers)),
        key=lambda item: (-item[0], item[1], item[2]),
    )
    taken, sets = 0, [set() for _ in range(inputs)]
    for _, k, i in order:
        if taken / (inputs * sum(sizes)) >= effort:
            break
        taken += sizes[k]
        sets[i].add(k)
    return sets


@given(problem=problems(), effort=EFFORTS)
@settings(max_examples=300, deadline=None)
def test_follows_the_definition_and_takes_prefixes(problem: tuple, effort: float) -> None:
    v, scores, sizes = problem
    literal = literal_selection(v, scores, sizes, effort)
    assert all(tiers == set(range(len(tiers))) for tiers in literal)
    assert select_tiers(v, scores, sizes, effort=effort).tolist() == [len(tiers) for tiers in literal]


@given(problem=problems(), effort=EFFORTS)
@settings(max_examples=200, deadline=None)
def test_share_is_reached_within_one_tier(problem: tuple, effort: float) -> None:
    v, scores, sizes = problem
    prefix = select_tiers(v, scores, sizes, effort=effort)
    total = len(v) * sum(sizes)
    share = sum(sum(sizes[:n]) for n in prefix) / total
    assert effort <= share < effort + max(sizes) / total


@given(problem=problems(), low=EFFORTS, high=EFFORTS)
@settings(max_examples=200, deadline=None)
def test_more_effort_takes_all_that_less_did(problem: tuple, low: float, high: float) -> None:
    v, scores, sizes = problem
    low, high = sorted((low, high))
    less, more = (select_tiers(v, scores, sizes, effort=effort) for effort in (low, high))
    assert (less <= more).all()


@given(problem=problems(), effort=EFFORTS)
@settings(max_examples=100, deadline=None)
def test_sign_order_in_memory_and_repetition_change_nothing(problem: tuple, effort: float) -> None:
    v, scores, sizes = problem
    first = select_tiers(v, scores, sizes, effort=effort)
    strided = np.repeat(v, 3)[::3]
    fortran = np.asfortranarray(scores)
    assert np.array_equal(first, select_tiers(-strided, fortran, sizes, effort=effort))


def test_worked_example_of_the_docstring() -> None:
    v, scores = np.array([2, -1], np.float32), np.array([[3, 1], [4, 3]], np.float32)
    assert select_tiers(v, scores, (2, 2), effort=0.5).tolist() == [1, 1]
    assert select_tiers(v, scores, (2, 2), effort=0.6).tolist() == [1, 2]


def test_ties_take_the_lower_tier_then_the_lower_input() -> None:
    v, scores = np.ones(3, np.float32), np.ones((3, 2), np.float32)
    taken = [select_tiers(v, scores, (4, 4), effort=n / 6).tolist() for n in range(1, 7)]
    assert taken == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]


def test_effort_one_takes_tiers_of_score_zero_too() -> None:
    assert (
        select_tiers(np.zeros(5, np.float32), np.zeros((5, 4), np.float32), (4, 4, 4, 4), effort=1.0).tolist()
        == [4] * 5
    )


def test_a_tiny_effort_takes_the_best_tier() -> None:
    v, scores = np.array([1, 3, 2], np.float32), np.ones((3, 4), np.float32)
    assert select_tiers(v, scores, (4, 4, 4, 4), effort=1e-9).tolist() == [0, 1, 0]


@given(effort=st.floats(1e-9, 1.0), total=st.integers(1, 10**9))
def test_weights_to_take_is_the_smallest_count_that_reaches_the_share(effort: float, total: int) -> None:
    count = weights_to_take(effort, total)
    assert 1 <= count <= total
    assert count / total >= effort
    assert count == 1 or (count - 1) / total < effort


@pytest.mark.parametrize("effort", [0.0, -0.5, math.nan])
def test_effort_must_be_positive(effort: float) -> None:
    with pytest.raises(InvalidArgumentError, match="effort must be"):
        select_tiers(np.ones(2, np.float32), np.ones((2, 1), np.float32), (16,), effort=effort)


@pytest.mark.parametrize(("inputs", "sizes"), [(3, (16,)), (2, (8, 8))])
def test_shapes_must_fit(inputs: int, sizes: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="selection needs v of shape"):
        select_tiers(np.ones(inputs, np.float32), np.ones((2, 1), np.float32), sizes, effort=0.5)
