"""Lookup in earlier answers: the owner's own, a bounded number of them, and never another token."""

from __future__ import annotations

import numpy as np
import pytest
from drafting import context_of, setup_of
from fake_runtime import ByteTokenizer, FakeRuntime, fake_model

import specdec
from specdec.drafters import earlier, successors
from specdec.drafters.base import DrafterMemory
from specdec.drafters.earlier import Archive, EarlierAnswers
from specdec.drafters.registry import create
from specdec.drafters.suffix_index import SuffixReader
from specdec.engine.policy import DraftPlan
from specdec.errors import SpecdecError

ENDLESS = ByteTokenizer(eos=frozenset())
PROMPT = [1, 2, 3, 4, 5]
LOOKUP = {"policy": "fixed", "draft_len": 4, "max_tokens": 40}


def accepted(batch: specdec.Batch, prompt, *, drafter: str, owner: str, **sampling) -> int:
    """Drafted tokens that were kept, and a check that the answer is plain decoding's."""
    with batch.submit(prompt, owner=owner, drafter=drafter, **LOOKUP, **sampling) as generation:
        list(generation)
        result = generation.result()
    plain = specdec.generate(batch._model, prompt, speculate=False, max_tokens=40, **sampling)
    assert result.tokens == plain.tokens
    return result.stats.accepted


@pytest.mark.parametrize("drafter", ["ngram", "chain:ngram,ngram:min=3"])
def test_an_answer_drafts_the_next_one_of_its_owner(drafter):
    model = fake_model(seed=6, tokenizer=ENDLESS)
    with specdec.Batch(model) as batch:
        assert accepted(batch, PROMPT, drafter=drafter, owner="a") < 4
        assert accepted(batch, PROMPT, drafter=drafter, owner="b") < 4  # what `a` has asked is hidden from `b`
        assert accepted(batch, PROMPT, drafter=drafter, owner="a") >= 30
        assert accepted(batch, PROMPT, drafter=drafter, owner="a", temperature=1.0, seed=3) < 20  # another answer
        assert accepted(batch, PROMPT, drafter=drafter, owner="b") >= 30
    before = model.memory.drafters.answers.of("a").tokens
    specdec.generate(model, PROMPT, drafter=drafter, **LOOKUP)  # no batch, no owner: nothing is kept or looked up
    assert model.memory.drafters.answers.of("a").tokens == before


def lookup(memory: DrafterMemory, owner: str | None, history: list[int], prompt_length: int = 0):
    runtime = FakeRuntime()
    drafter = create("ngram:min=2,max=4", setup_of(runtime, memory=memory, owner=owner))
    context = context_of(runtime, history, prompt_length=prompt_length)
    return drafter, context


def test_prompts_are_not_kept_and_short_matches_do_not_count():
    memory, plan = DrafterMemory(), DraftPlan(num_draft_tokens=3, effort=1.0)
    drafter, context = lookup(memory, "a", [1, 2, 3, 4, 5, 6, 7, 8, 9], prompt_length=6)
    drafter.ended(context)
    assert memory.answers.of("a").tokens == 9  # three, found by the six before them
    for history, drafted in (
        ([50, 3, 4, 5, 6], [7, 8, 9]),  # the end of the prompt is context
        ([50, 2, 3, 4, 5], []),  # the prompt itself is nobody's draft
        ([50, 51, 5, 6, 7], []),  # three tokens say little of another text
        ([4, 5, 6, 7, 60, 4, 5, 6, 7], [60, 4, 5]),  # the text's own comes first
    ):
        other, context = lookup(memory, "a", history)
        assert other.draft(plan, context, policy=None).tokens == drafted, history
        assert bool(other.match_length(context)) == bool(drafted)
    for owner in ("b", "", None):
        other, context = lookup(memory, owner, [50, 3, 4, 5, 6])
        assert other.draft(plan, context, policy=None).tokens == []


def known(answers: EarlierAnswers, text: list[int]) -> tuple[int, int]:
    found = [index.continuation(SuffixReader(64).at(index, text), 1) for index in (answers.newer, answers.older)]
    return max(found, key=lambda one: one[1])


def test_old_answers_are_forgotten(monkeypatch):
    monkeypatch.setattr(earlier, "_TOKENS", 100)
    answers = EarlierAnswers()
    for number in range(40):
        answers.add([number, 1, 2, 3, 250, *range(5, 20)], 4)
        assert answers.tokens <= 2 * (100 + 20)
        assert known(answers, [number, 1, 2, 3]) == (250, 4)
    assert known(answers, [20, 1, 2, 3]) == (250, 3)  # by a later one
    answers.add(list(range(250)) * 4, 0)  # of one that is longer than all may be, the end
    assert answers.tokens <= 2 * (100 + 20)
    assert known(answers, [249]) == (-1, 0)


def test_answers_do_not_run_into_one_another():
    answers = EarlierAnswers()
    answers.add([1, 2, 3, 4, 5], 2)
    answers.add([6, 7, 8, 9], 2)
    assert known(answers, [4, 5]) == (-1, 0)  # what comes after 5 is another answer's context
    assert known(answers, [7, 8]) == (9, 2)


def test_successors_are_the_owners_and_bounded(monkeypatch):
    monkeypatch.setattr(successors, "_MOST", 5)
    memory, runtime = DrafterMemory(), FakeRuntime()
    plan = DraftPlan(num_draft_tokens=2, effort=1.0)

    def recycling(owner: str | None, history: list[int], prompt_length: int = 0):
        return create("recycle", setup_of(runtime, memory=memory, owner=owner)), context_of(
            runtime, history, prompt_length=prompt_length
        )

    drafter, context = recycling("a", [1, 2, 3, 4, 5], prompt_length=3)
    drafter.ended(context)
    for owner, history, drafted in (
        ("a", [9, 3], [4, 5]),
        ("a", [3, 7, 3], [7, 3]),  # the text's own comes first
        ("a", [9, 2], []),  # what only the prompt held
        ("b", [9, 3], []),
        (None, [9, 3], []),
    ):
        drafter, context = recycling(owner, history)
        assert drafter.draft(plan, context, policy=None).tokens == drafted, (owner, history)
        assert bool(drafter.match_length(context)) == bool(drafted)
    drafter, context = recycling("a", list(range(100, 140)))
    drafter.ended(context)
    assert len(memory.answers.of("a").successors) == 5
    assert memory.answers.of("a").tokens == 5


def test_owners_are_forgotten(monkeypatch):
    monkeypatch.setattr(earlier, "_ALL_TOKENS", 150)
    archive = Archive()
    for number in range(40):
        archive.of(str(number)).add([number, 1, 2, 3, 4], 4)
        archive.of("kept").add([1] * 2, 1)
    assert archive.of("kept").tokens > 0
    assert archive.of("39").tokens == 5
    assert archive.of("3").tokens == 0
    archive.of("many").add([1] * 300, 0)
    assert archive.of("kept").tokens == 80  # the latest, so the others go
    assert archive.of("many").tokens == 0


class Untidy:
    """A drafter that fails at the end."""

    views = ()
    takes_effort = False

    def draft(self, _plan, _context, *, policy):
        return specdec.drafters.base.Draft()

    def ended(self, _context):
        raise RuntimeError("no room")


def test_a_drafter_that_fails_at_the_end_is_named():
    generation = specdec.stream(fake_model(tokenizer=ENDLESS), [1], drafter=Untidy(), max_tokens=3)
    assert len([token for piece in generation for token in piece.tokens]) == 3
    with pytest.raises(SpecdecError, match="'Untidy' failed in ended: RuntimeError: no room"):
        generation.result()


def test_answers_are_indexed_when_they_are_looked_up() -> None:
    at_once, later = EarlierAnswers(), EarlierAnswers()
    rng = np.random.default_rng(0)
    for _ in range(20):
        text = rng.integers(0, 9, 60).tolist()
        at_once.add(text, 20)
        assert at_once.newer.tokens
        later.add(text, 20)
        assert not later._newer.tokens
        assert later.tokens == at_once.tokens
    for one in (at_once, later):
        one.newer.begin()
    text = rng.integers(0, 9, 200).tolist()
    for end in range(1, 200):
        places = [SuffixReader(16).at(one.newer, text[:end]) for one in (at_once, later)]
        assert places[0] == places[1]
