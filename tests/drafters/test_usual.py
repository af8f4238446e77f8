"""What usually follows a token, by the bundled list, for any vocabulary."""

from __future__ import annotations

import json

import numpy as np
import pytest

from specdec.drafters import usual
from specdec.drafters.usual import MOST, usual_successors


@pytest.fixture
def listed(monkeypatch):
    lines = [["a", "b", "c", "d"], ["b", "a"], ["x", "a"], ["\u00e9", "a", "b"], ["c", *"abdefghij"]]
    monkeypatch.setattr(usual, "_pairs", lambda: [[piece.encode() for piece in line] for line in lines])


def test_pieces_of_the_vocabulary_are_found_and_others_left_out(listed):
    pieces = [b"<s>", b"", b"d", b"a", b"b", b"c", "\u00e9".encode(), b"z"]
    found = usual_successors(pieces, len(pieces))
    assert found.shape == (8, MOST)
    assert found.dtype == np.int32
    rows = {token: [one for one in row if one >= 0] for token, row in enumerate(found.tolist())}
    assert rows == {0: [], 1: [], 2: [], 3: [4, 5, 2], 4: [3], 5: [3, 4, 2], 6: [3, 4], 7: []}


def test_models_may_have_fewer_or_more_ids_than_pieces(listed):
    pieces = [b"a", b"b", b"c"]
    assert usual_successors(pieces, 2)[:, 0].tolist() == [1, 0]
    assert usual_successors(pieces, 5)[:, 0].tolist() == [1, 0, 0, -1, -1]
    assert (usual_successors((), 4) == -1).all()


def test_the_bundled_list_is_one_of_pieces_each_once():
    pairs = usual._pairs()
    assert 2000 < len(pairs) <= 8000
    firsts = [line[0] for line in pairs]
    assert len(set(firsts)) == len(firsts)
    assert all(2 <= len(line) <= 1 + MOST and len(set(line[1:])) == len(line) - 1 and all(line) for line in pairs)
    json.dumps([piece.decode("utf-8") for piece in firsts])
