"""What turns would have kept in a text, against texts of which it is known."""

from __future__ import annotations

import numpy as np
import pytest
from specdec.kernels.reference.recycle import Recycled

from specdec.drafters.hindsight import Hindsight


def test_a_text_that_repeats_itself_fills_every_turn():
    text = [1, 2, 3, 4, 5, 6] * 12
    assert Hindsight(8, {}).kept(text) == [7] * 8
    assert Hindsight(8, {}).kept(text[:30]) == [7, 7, 6]  # the last turn has not ended


def test_one_token_is_kept_after_one_that_it_usually_follows():
    text = [10, 11, 12, 13, 14, 15, 16]
    assert Hindsight(2, {}).kept(text) == [0] * 5
    usual = {11: [9, 8, 12], 13: [14], 15: [1, 2, 3, 4, 5, 16]}
    # 12 is kept and 13 the verifier's own, then 14 and 15; 16 is too unlikely a successor.
    assert Hindsight(2, usual).kept(text) == [1, 1, 0]
    assert Hindsight(2, {}).kept([20, 21, 22, 20, 21, 5]) == [0, 0, 1]  # 21 followed 20 before


def test_the_prompt_is_looked_up_and_not_judged():
    prompt = list(range(50, 90))
    assert Hindsight(len(prompt), {}).kept(prompt) == []
    assert Hindsight(len(prompt), {}).kept([*prompt, 7, *range(60, 69)]) == [0, 0, 1, 6]
    assert Hindsight(2, {}).kept([*prompt, 7, *range(60, 69)]) == [0] * 40 + [1, 6]
    long = [*range(50, 90), *[3] * 600]
    assert max(Hindsight(len(long), {}).kept([*long, 7, *range(60, 69)])) == 0  # only the last tokens of a long one


@pytest.mark.parametrize("vocab", [1, 2, 7, 60])
def test_a_text_may_come_in_pieces_and_lose_its_end(vocab):
    generator, hindsight, text = np.random.default_rng(vocab), Hindsight(3, {5: [1, 2]}), [1, 2, 3]
    for _ in range(200):
        count = int(generator.integers(0, 17))
        text = [*text, *generator.integers(0, vocab, count).tolist()]
        kept = hindsight.kept(text)
        assert all(0 <= one <= 7 for one in kept)
        assert len(kept) + sum(kept) in (count, count + 1)  # the last turn may lack the verifier's own token
        if generator.random() < 0.3:
            text = text[: max(3, len(text) - 4)]
            assert hindsight.kept(text) == []
    assert Hindsight(1, {}).kept([4]) == []


@pytest.mark.parametrize("repeats", [0.0, 0.3, 0.8])
def test_it_is_close_to_the_rule_by_which_turns_draft(repeats):
    generator = np.random.default_rng(1)
    usual = {token: generator.permutation(200)[:8].tolist() for token in range(200)}
    text = generator.integers(0, 200, 60).tolist()
    while len(text) < 600:
        if generator.random() < repeats:
            start = int(generator.integers(0, len(text) - 20))
            text += text[start : start + 20]
        else:
            text += [usual[text[-1]][int(generator.integers(0, 3))], int(generator.integers(0, 200))]
    rule, at, kept = Recycled(usual), 60, list[int]()
    while at < len(text) - 8:
        tokens, parents = rule.draft(text[:at], 8, 1000)
        count, last = 0, -1
        for number, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            if parent == last and token == text[at + count]:
                count, last = count + 1, number
        kept.append(count)
        at += 1 + count
    found = Hindsight(60, usual).kept(text)
    assert np.mean(found) == pytest.approx(np.mean(kept), rel=0.15)  # it takes the latest match, not the longest
