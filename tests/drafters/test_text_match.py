"""The length of a match, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from specdec.kernels.reference.recycle import Recycled, longest_match

from specdec.drafters import text_match
from specdec.drafters.text_match import TextMatch


@pytest.mark.parametrize("short", [0, 300, 2048])
@pytest.mark.parametrize("vocab", [1, 2, 5, 300])
def test_it_is_that_of_the_longest_end_that_occurred_before(vocab, short, monkeypatch):
    monkeypatch.setattr(text_match, "_SHORT", short)
    generator, text, match = np.random.default_rng(vocab), list[int](), TextMatch()
    while len(text) < 700:
        text += generator.integers(0, vocab, int(generator.integers(1, 30))).tolist()
        if generator.random() < 0.5 and len(text) > 20:
            start = int(generator.integers(0, len(text) - 10))
            text += text[start : start + int(generator.integers(1, 10))]
        assert match.length(text) == min(9, longest_match(text)[0])
        if generator.random() < 0.3:
            del text[-3:]  # rounds that were taken back
            if text:
                assert match.length(text) == min(9, longest_match(text)[0])


def test_a_text_of_one_token_has_none():
    assert TextMatch().length([5]) == 0
    assert longest_match([5]) == (0, -1)


def test_the_reference_follows_the_latest_of_the_longest_matches():
    text = [1, 2, 3, 7, 1, 2, 3, 8, 9, 2, 3]
    assert longest_match(text) == (2, 7)
    assert longest_match([4, 4, 4, 4]) == (3, 3)
    assert longest_match(text, besides=8) == (2, 3)
    tokens, parents = Recycled().draft(text, 8, 100)
    # On from the latest match, and from the one that another token followed.
    assert list(zip(tokens, parents, strict=True))[:6] == [(8, -1), (9, 0), (7, -1), (2, 1), (3, 3), (1, 2)]


def test_the_reference_drafts_successors_off_the_trunk():
    rule, text = Recycled(), [1, 2, 3, 1]
    rule.learn([1, 2, 5], [[2, 5, 6], [9, 3], [7]])
    tokens, parents = rule.draft(text, 16, 100)
    paths = {}
    for number, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        paths[number] = (*paths.get(parent, ()), token)
    assert (2, 3, 1) in paths.values()  # the trunk
    assert (5,) in paths.values()  # the likeliest successor besides it
    assert (6,) in paths.values()
    assert len(set(paths.values())) == len(paths)
    narrow, _ = rule.draft(text, 4, 100)
    assert len(narrow) == 3
    assert rule.draft(text, 16, 5) == ([], [])  # no room beside the verifier's own token
    assert len(tokens) == 15
    assert (9, -1) in zip(*rule.draft([1, 2, 3, 1, 2], 16, 100), strict=True)


def test_a_new_token_drafts_its_successors_where_they_are_known():
    rule = Recycled()
    assert rule.draft([1, 2, 3], 16, 100) == ([], [])
    rule.learn([3], [[4, 5, 6, 7, 8, 9, 10, 11]])
    tokens, parents = rule.draft([1, 2, 3], 16, 100)
    assert tokens == [4, 5, 6, 7, 8, 9, 10, 11]
    assert set(parents) == {-1}
    known = Recycled({3: [4, 5], 4: [6]})
    assert known.draft([1, 2, 3], 3, 100) == ([4, 5], [-1, -1])
    assert known.draft([1, 2, 3], 16, 100) == ([4, 5, 6], [-1, -1, 0])
    known.learn([3], [[9]])
    assert known.draft([1, 2, 3], 16, 100) == ([9], [-1])


def test_the_reference_grows_the_tree_by_the_likeliest_row():
    rule = Recycled({token: [token + 1, token + 2, token + 3] for token in range(40)})
    text = [50, 51, 52, 53, 54, 1, 50, 51, 52, 53, 54]
    tokens, parents = rule.draft(text, 16, 100)
    assert parents[:3] == [-1, 0, 1]
    assert tokens[:2] == [1, 50]  # a long match is followed before any successor
    wide, _ = rule.draft(text, 6, 100)
    assert wide == tokens[:5]  # a narrow tree is the beginning of a wide one
