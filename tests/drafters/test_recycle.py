"""Recycled tokens: what is proposed, what the verifier's logits add, and who may be shown them."""

from __future__ import annotations

import numpy as np
import pytest
from drafting import context_of, draft_of, setup_of
from fake_runtime import ByteTokenizer, FakeRuntime, fake_model

import specdec
from specdec.drafters.base import Draft, Observer
from specdec.drafters.registry import create
from specdec.engine.policy import DraftPlan
from specdec.errors import SpecdecError

PLAN = DraftPlan(num_draft_tokens=4, effort=1.0)
ENDLESS = ByteTokenizer(eos=frozenset())


def test_what_followed_last_is_proposed_two_tokens_at_most():
    assert draft_of("recycle", [1, 2, 1, 3, 4, 1], 6).tokens == [3, 4]
    assert draft_of("recycle", [1, 2, 1, 3, 4, 1], 1).tokens == [3]
    assert draft_of("recycle", [1, 2, 3], 6).tokens == []
    assert draft_of("recycle", [7, 7], 6).tokens == [7, 7]
    assert draft_of("recycle", [1, 2, 3, 1], 6, end_tokens=frozenset({2})).tokens == [2]


def test_a_chain_goes_on_with_recycled_tokens():
    found = draft_of("chain:ngram,recycle", [1, 2, 3, 9, 3, 1, 2], 3)
    assert found.tokens == [3, 9, 3]
    drafter, runtime = create("recycle", setup_of(FakeRuntime())), FakeRuntime()
    context = context_of(runtime, [5, 6, 7, 5, 8], end_tokens=frozenset({7}))
    assert drafter.extend(Draft([6]), PLAN, context, policy=None).tokens == [6, 7]
    assert drafter.extend(Draft([7]), PLAN, context, policy=None).tokens == [7]
    assert drafter.extend(Draft([9]), PLAN, context, policy=None).tokens == [9]


def test_whether_anything_is_known_is_foretold():
    for history, length in (([1, 2, 3], 0), ([1, 2, 1], 1), ([1, 2] * 9 + [1], 1)):
        drafter = create("recycle", setup_of(FakeRuntime()))
        assert drafter.match_length(context_of(FakeRuntime(), history)) == length
    assert drafter.most_tokens == 2
    for history, length in (([1, 2, 3], 0), ([1, 2, 1], 1), ([1, 2, 3, 1, 2], 2)):
        chain = create("chain:ngram,recycle", setup_of(FakeRuntime()))
        assert chain.match_length(context_of(FakeRuntime(), history)) == length


def test_refused_tokens_are_followed_by_what_the_verifier_said_after_them():
    drafter = create("recycle", setup_of(FakeRuntime()))
    assert isinstance(drafter, Observer)
    logits = np.zeros((4, 256), np.float32)
    for row, token in enumerate((20, 30, 40, 50)):
        logits[row, token] = 1.0
    drafter.verified([1, 2, 3, 4], logits, range(1))  # 2 was kept, 3 and 4 refused
    for last, drafted in ((1, []), (2, []), (3, [40]), (4, [50])):
        context = context_of(FakeRuntime(), [9, last])
        assert create("recycle", setup_of(FakeRuntime())).draft(PLAN, context, policy=None).tokens == []
        assert drafter.draft(PLAN, context, policy=None).tokens[:1] == drafted
    drafter.verified([1, 3, 8], logits[[0, 3, 2]], [])
    assert drafter.draft(PLAN, context_of(FakeRuntime(), [9, 3]), policy=None).tokens[:1] == [50]  # the latest
    assert drafter.draft(PLAN, context_of(FakeRuntime(), [9, 3, 6, 3]), policy=None).tokens[:1] == [6]  # text says more


class Curious:
    """Drafts nonsense and keeps what it is shown."""

    views = ()
    takes_effort = False

    def __init__(self, fails: bool = False, most_tokens: object = None):
        self.fails, self.seen, self.most_tokens = fails, [], most_tokens

    def draft(self, plan, context, *, policy):
        return Draft([7] * plan.num_draft_tokens)

    def verified(self, tokens, logits, kept):
        if self.fails:
            raise RuntimeError("no logits please")
        self.seen.append((list(tokens), logits.copy(), list(kept)))


def test_drafters_are_shown_every_pass_that_was_judged():
    model, drafter = fake_model(seed=3, tokenizer=ENDLESS), Curious()
    result = specdec.generate(model, [1, 2, 3], max_tokens=20, drafter=drafter, policy="fixed", draft_len=2)
    text, place = [1, 2, 3, *result.tokens], 2
    rows = model.logits(text)
    for tokens, logits, kept in drafter.seen:
        if len(tokens) == 1 and place == 2:
            assert len(drafter.seen) > 1
        assert tokens[0] == text[place]
        assert kept == list(range(len(kept)))
        for row in range(len(kept) + 1):
            assert np.array_equal(logits[row], rows[place + row])
        place += len(kept) + 1
    assert place >= len(text) - 1


def test_a_drafter_that_fails_when_shown_is_named_and_the_answer_can_go_on_plainly():
    model = fake_model(seed=3, tokenizer=ENDLESS)
    with pytest.raises(SpecdecError, match="'Curious' failed in verified: RuntimeError: no logits please"):
        specdec.generate(model, [1, 2, 3], max_tokens=20, drafter=Curious(fails=True), policy="fixed")
    assert len(specdec.generate(model, [1, 2, 3], max_tokens=20).tokens) == 20


@pytest.mark.parametrize("most", [0, -1, "two", True, 1.5])
def test_a_wrong_bound_of_a_drafter_is_refused(most):
    with pytest.raises(SpecdecError, match="most_tokens must be None or a whole number of at least 1"):
        specdec.generate(fake_model(), [1], max_tokens=3, drafter=Curious(most_tokens=most))
