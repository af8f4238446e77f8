"""The suffix automaton against brute force: longest runs, what followed them, memory, and texts that grow."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.drafters import suffix_index
from specdec.drafters.suffix_index import NOWHERE, Place, SuffixIndex


@pytest.fixture(autouse=True, scope="module")
def _count_all():
    """Short texts that repeat themselves are counted in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_index, "_MOST_COUNTED", 64)
        yield


TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=24), min_size=1, max_size=4)


def occurrences(texts: list[list[int]], run: list[int]) -> list[tuple[int, int]]:
    """Text and end of every place where a run occurs."""
    return [
        (number, end)
        for number, text in enumerate(texts)
        for end in range(len(run), len(text) + 1)
        if text[end - len(run) : end] == run
    ]


def brute_force(texts: list[list[int]], end_of: list[int], shortest: int, longest: int, counted=None):
    """The most frequent, then latest continuation of the longest run that ends `end_of` and has one, and its length."""
    for length in range(min(longest, len(end_of)), shortest - 1, -1):
        run = end_of[len(end_of) - length :]
        after = [
            texts[number][end]
            for number, end in occurrences(texts, run)
            if end < len(texts[number]) and (counted is None or end >= counted[number])
        ]
        if after:
            counts = Counter(after)
            most = max(counts.values())
            return next(token for token in reversed(after) if counts[token] == most), length
    return -1, 0


def place_of(index: SuffixIndex, text: list[int], longest: int = 1 << 20) -> Place:
    place = NOWHERE
    for token in text:
        place = index.shorten(index.advance(place, token), longest)
    return place


@given(texts=TEXTS, query=st.lists(st.integers(0, 4), max_size=12), longest=st.integers(1, 12), data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_index_finds_the_longest_run_and_what_followed_it_most(texts, query, longest, data):
    index, counted = SuffixIndex(), [data.draw(st.integers(0, len(text))) for text in texts]
    for text, first in zip(texts, counted, strict=True):
        index.begin()
        index.add(text[:first], counts=False)  # context
        index.add(text, first)
    place = place_of(index, query, longest)
    known = next((n for n in range(min(longest, len(query)), 0, -1) if occurrences(texts, query[len(query) - n :])), 0)
    assert place.length == known
    shortest = data.draw(st.integers(1, 4))
    assert index.continuation(place, shortest) == brute_force(texts, query, shortest, longest, counted)


@given(text=st.lists(st.integers(0, 2), max_size=60), data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_end_of_a_growing_text_is_matched_with_its_earlier_part(text, data):
    index, grown = SuffixIndex(), []
    while len(grown) < len(text):  # in pieces, as a text grows
        grown = text[: len(grown) + data.draw(st.integers(1, 20))]
        index.follow(grown)
        earlier = [grown[:-1]]
        known = next((n for n in range(len(grown) - 1, 0, -1) if occurrences(earlier, grown[-n:])), 0)
        place = index.end()
        assert place.length == known
        longest = data.draw(st.integers(1, 8))
        assert index.continuation(index.shorten(place, longest), 1) == brute_force(
            [grown], grown, 1, min(known, longest)
        )
        proposed = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        for token in proposed:  # a proposal after the end continues from there
            place = index.advance(place, token)
        whole = [*grown, *proposed]
        reach = known + len(proposed)
        found = next((n for n in range(min(reach, len(whole)), 0, -1) if occurrences([grown], whole[-n:])), 0)
        assert place.length == found


@pytest.mark.parametrize("period", [1, 2, 7, 500])
def test_text_that_repeats_itself_takes_no_more_steps_than_other_text(period, monkeypatch):
    """Every suffix of such a text occurs again, so that counting all of them would take quadratic time."""
    monkeypatch.setattr(suffix_index, "_MOST_COUNTED", 16)
    index, steps = SuffixIndex(), 0
    link = index._link

    class Counting(type(link)):
        def __getitem__(self, state):
            nonlocal steps
            steps += 1
            return super().__getitem__(state)

    index._link = Counting("i", link)
    text = [token % period for token in range(4000)]
    index.follow(text)
    assert steps < 25 * len(text)
    assert index.end().length == len(text) - period
    assert index.continuation(index.end(), 1) == (len(text) % period, len(text) - period)


def test_memory_is_bounded_by_the_text():
    """At most two states a token and three transitions (Blumer et al., theorems 1.6 and 1.9)."""
    for text in ([0] + [1] * 999 + [2], [token * token % 17 for token in range(1000)], list(range(1000))):
        index = SuffixIndex()
        index.follow(text)
        states = len(index._length)
        transitions = sum(token >= 0 for token in index._token) + sum(map(len, index._branches.values()))
        assert states <= 2 * len(text)
        assert transitions <= 3 * len(text)
        assert {len(one) for one in (index._link, index._count, index._latest, index._token, index._target)} == {states}
        assert all(one.itemsize == 4 for one in (index._length, index._link, index._count, index._token))
