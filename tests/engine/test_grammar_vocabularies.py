"""Grammars over real tokenizers of every kind: what a text is made of, and that answers decode to what was matched."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    bpe_metadata,
    gguf_tokenizer,
    huggingface_tokenizer,
    sentencepiece_metadata,
    trained_sentencepiece,
)

from specdec.engine.constraint import GrammarConstraint
from specdec.engine.grammar import Grammar
from specdec.engine.grammar_tables import Grammars, _Vocabulary
from specdec.tokenizers import Tokenizer


@pytest.fixture(scope="module", params=["byte-level", "byte fallback", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte-level":
        return gguf_tokenizer(bpe_metadata(), folder)
    if request.param == "sentencepiece":
        return huggingface_tokenizer({"tokenizer.model": trained_sentencepiece()}, folder)
    return gguf_tokenizer(sentencepiece_metadata(trained_sentencepiece()), folder)


def constraint_of(tokenizer: Tokenizer, regex: str, *, continues: bool = False) -> GrammarConstraint:
    size = tokenizer.vocab_size + 5  # models pad their tables
    found = Grammars().constraint(Grammar("regex", regex), tokenizer, size, continues=continues)
    found.begin([])
    return found


def allowed_after(constraint: GrammarConstraint, tokenizer: Tokenizer, drafted: list[int]) -> list[int]:
    logits = np.zeros(tokenizer.vocab_size + 5, np.float32)
    constraint.mask(logits, drafted)
    return np.flatnonzero(logits == 0).tolist()


@given(
    text=st.text(max_size=20)
    | st.sampled_from([" ", "  a", "\n x", "<s>", "</s>", "<|im_end|>", "né", "a b", "\u2581"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tokens_of_a_text_are_exactly_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    pieces = list(tokenizer.pieces)
    vocabulary = _Vocabulary(tokenizer, pieces, sorted(tokenizer.special_ids), [0])
    ids = vocabulary(text.encode())
    assert b"".join(pieces[token] for token in ids) == text.encode()
    assert not tokenizer.special_ids.intersection(ids)
    half = "né".encode()[:-1]
    assert b"".join(pieces[token] for token in vocabulary(half)) == half


@pytest.mark.parametrize("continues", [False, True])
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_matched_is_what_is_read(tokenizer: Tokenizer, continues: bool, data: st.DataObject) -> None:
    """A random walk through a grammar of words, spaces and letters that are more than a byte: the text that comes out
    is in the language."""
    regex = "(The|the| quick|né|東京|, | )+\\."
    constraint = constraint_of(tokenizer, regex, continues=continues)
    ids: list[int] = []
    while len(ids) < 30 and not constraint.is_complete(ids):
        allowed = [one for one in allowed_after(constraint, tokenizer, ids) if one not in tokenizer.eos_ids]
        ids.append(data.draw(st.sampled_from(allowed)))
    detokenizer = tokenizer.detokenizer(continues=continues)
    text = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
    if constraint.is_complete(ids):
        assert re.fullmatch(regex, text), text
    assert not tokenizer.special_ids.intersection(ids)
    assert max(ids) < tokenizer.vocab_size


def test_only_ends_follow_a_text_that_is_complete(tokenizer: Tokenizer) -> None:
    constraint = constraint_of(tokenizer, "a?")
    ends = sorted(tokenizer.eos_ids)
    assert ends
    found = allowed_after(constraint, tokenizer, [])
    assert set(ends) < set(found)
    letter = next(one for one in found if tokenizer.pieces[one] == b"a")
    assert allowed_after(constraint, tokenizer, [letter]) == ends
    assert constraint.is_complete([letter])


def test_a_first_space_that_would_not_be_shown_is_avoided_where_it_can_be(tokenizer: Tokenizer) -> None:
    spaced = [one for one in range(tokenizer.vocab_size) if tokenizer.pieces[one].startswith(b" ")]
    optional = allowed_after(constraint_of(tokenizer, " ?the"), tokenizer, [])
    assert bool(set(optional) & set(spaced)) != tokenizer.strips_first_space
    needed = allowed_after(constraint_of(tokenizer, " the"), tokenizer, [])
    assert set(needed) <= set(spaced)
    assert needed
    assert set(allowed_after(constraint_of(tokenizer, " ?the", continues=True), tokenizer, [])) & set(spaced)
