"""Drafting by lookup: what is proposed, and what is learnt from it. The index is tested in `test_suffix_index`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from drafting import context_of, draft_of, setup_of
from fake_runtime import FakeRuntime, fake_model
from hypothesis import given
from hypothesis import strategies as st

import specdec
from specdec.drafters.acceptance import ProposalBook
from specdec.drafters.base import Draft, Foreteller
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.registry import create
from specdec.engine.policy import DraftPlan


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
    passage = list(range(10, 90))
    for count in (5, 40, 64, 70):  # of the whole match, up to 64
        fresh = create("ngram", setup_of(runtime))
        assert fresh.match_length(context_of(runtime, [*passage, 1, *passage[:count]])) == min(count, 64)


def test_a_longer_match_beats_a_more_frequent_shorter_one():
    passage = list(range(10, 20))
    history = [*passage, 50, *(9, *passage[-2:], 60) * 3, 1, *passage]
    assert draft_of("ngram", history, 1).tokens == [50]
    assert draft_of("ngram:max=2", history, 1).tokens == [60]


def test_lookup_follows_a_text_that_grows_and_the_tokens_of_a_draft_before_it(tmp_path):
    (tmp_path / "table").write_bytes(bytes(range(100, 120)))
    runtime, plan = FakeRuntime(), DraftPlan(num_draft_tokens=6, effort=1.0)
    drafter = create(f"ngram:table={tmp_path / 'table'}", setup_of(runtime))
    history = [1, 2, 3]
    context = context_of(runtime, history)
    for token, length in ((100, 0), (101, 2), (102, 3), (103, 4), (7, 0), (1, 0), (2, 2), (3, 3)):
        history.append(token)
        assert drafter.match_length(context) == length, token
    assert drafter.draft(plan, context, policy=None).tokens[:2] == [100, 101]
    history.append(50)
    found = drafter.extend(Draft([104, 105]), plan, context, policy=None)
    assert found.tokens == [104, 105, 106, 107, 108, 109]  # found by the draft's tokens
    assert drafter.match_length(context) == 0  # which were not taken for the text's


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


@given(st.lists(st.integers(0, 3), min_size=1, max_size=120), st.integers(1, 4), st.integers(4, 12))
def test_matches_are_as_long_whether_the_text_is_indexed_or_not(text: list[int], shortest: int, longest: int) -> None:
    """An index of a prompt takes milliseconds: it waits for the first draft, or a match that is long."""
    argument = f"min={shortest},max={longest}"
    quick, indexed = NgramDrafter(argument, None), NgramDrafter(argument, None)
    history: list[int] = []
    for token in text:
        history.append(token)
        indexed._matches(history)
        context: Any = SimpleNamespace(history=history)
        assert quick.match_length(context) == indexed.match_length(context)
