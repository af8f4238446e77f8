"""Drafting by lookup: the index against brute force, what is proposed, and what is learnt from it."""

from __future__ import annotations

from collections import Counter

import pytest
from drafting import context_of, draft_of, setup_of
from fake_runtime import FakeRuntime, fake_model
from hypothesis import given, settings
from hypothesis import strategies as st

import specdec
from specdec.drafters.acceptance import ProposalBook
from specdec.drafters.base import Foreteller
from specdec.drafters.ngram_index import NgramIndex
from specdec.drafters.registry import create


def brute_force(tokens: list[int], suffix: list[int], shortest: int, longest: int) -> tuple[int, int]:
    for n in range(min(longest, len(suffix)), shortest - 1, -1):
        places = [i + n for i in range(len(tokens) - n) if tokens[i : i + n] == suffix[-n:]]
        if places:
            counts = Counter(tokens[place] for place in places)
            most = max(counts.values())
            return next(tokens[place] for place in reversed(places) if counts[tokens[place]] == most), n
    return -1, 0


@given(
    data=st.data(),
    tokens=st.lists(st.integers(0, 3), max_size=60),
    sizes=st.tuples(st.integers(1, 4), st.integers(0, 3)),
)
@settings(max_examples=200, deadline=None)
def test_the_index_knows_the_most_frequent_then_latest_continuation(data, tokens, sizes):
    shortest, longest = sizes[0], sum(sizes)
    index, grown = NgramIndex(shortest, longest), []
    while len(grown) < len(tokens):  # in pieces, as a text grows
        grown = tokens[: len(grown) + data.draw(st.integers(1, 20))]
        index.follow(grown)
    suffix = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=8))
    found, wanted = index.continuation(suffix), brute_force(tokens, suffix, shortest, longest)
    assert found[1] == wanted[1]
    # Among equally frequent ones the index prefers the one that reached that count last, which is the latest place.
    assert found == wanted


def test_lookup_copies_a_passage_and_goes_on_through_its_own_proposal():
    passage = [5, 6, 7, 8, 9]
    assert draft_of("ngram", [*passage, 1, 5, 6], 3).tokens == [7, 8, 9]
    assert draft_of("ngram", [1, 2, 3, 1, 2, 3, 1, 2], 7).tokens == [3, 1, 2, 3, 1, 2, 3]
    assert draft_of("ngram", [*passage, 1, 5, 6], 9, end_tokens=frozenset({8})).tokens == [7, 8]
    assert draft_of("ngram", [5, 6, 7, 4, 6], 3).tokens == []  # one token is not enough by default
    assert draft_of("ngram:min=1", [5, 6, 7, 4, 6], 2).tokens == [7, 4]


def test_lookup_prefers_the_longest_match_and_the_texts_own_over_the_tables(tmp_path):
    (tmp_path / "table").write_bytes(bytes([1, 2, 3, 40, 9, 2, 3, 41, 9, 2, 3, 41]))
    spec = f"ngram:min=2,max=3,table={tmp_path / 'table'}"
    assert draft_of(spec, [1, 2, 3], 1).tokens == [40]
    assert draft_of(spec, [7, 2, 3], 1).tokens == [41]
    assert draft_of(spec, [2, 3, 42, 7, 2, 3], 1).tokens == [42]
    assert draft_of(spec, [2, 3, 42, 1, 2, 3], 1).tokens == [40]  # three tokens in the table, two in the text


def test_a_table_is_read_once_for_a_model(tmp_path, monkeypatch):
    (tmp_path / "table").write_text("read me once")
    model = fake_model()
    for _ in range(2):
        specdec.generate(model, [1, 2], max_tokens=3, drafter=f"ngram:table={tmp_path / 'table'}", policy="fixed")
    assert len(model.memory.drafters.tables) == 1
    (tmp_path / "table").write_text("now something else")
    specdec.generate(model, [1, 2], max_tokens=3, drafter=f"ngram:table={tmp_path / 'table'}", policy="fixed")
    assert len(model.memory.drafters.tables) == 2


def test_lookup_foretells_how_much_it_found():
    runtime = FakeRuntime()
    drafter = create("ngram:min=2,max=4", setup_of(runtime))
    assert isinstance(drafter, Foreteller)
    for history, length in (([1, 2, 3], 0), ([1, 2, 9, 1, 2], 2), ([1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5], 4)):
        fresh = create("ngram:min=2,max=4", setup_of(runtime))
        assert fresh.match_length(context_of(runtime, history)) == length


def test_acceptance_is_learnt_from_the_text_that_came():
    book = ProposalBook(0.5)
    for _ in range(60):
        book.note("right", 3, [1, 2])
        book.note("half", 3, [1, 9])
        book.note("too early", 5, [7])
        book.learn([0, 0, 0, 1, 2])
    assert book.rate("right") == pytest.approx(1.0, abs=1e-3)  # 0.85 ** 60 of the prior is left
    assert book.rate("half") == pytest.approx(0.5, abs=1e-3)  # one of two tried
    assert book.rate("too early") == 0.5  # nothing came yet
    assert book.rate("never seen") == 0.5
