"""Tokens that the runtime's own turns would have kept in a text that was decoded without them: `Hindsight`.

It follows the rule of `kernels/reference/recycle.py` roughly, in a fraction of a microsecond for each token: the text
goes on as after the latest occurrence of its last two tokens, or one token is a usual successor of the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

_MOST_KEPT = 7  # tokens of a turn: those of a turn of 8 rows
_RANKS = 5  # usual successors of a token that such a turn has rows for, about
_MOST_READ = 512  # tokens at the end of a prompt that are looked up, which takes some 40 µs once


class Hindsight:
    """Follows a text that grows, and may lose tokens at its end.

    Args:
        prompt_tokens: number of tokens at the beginning of the text that are not judged.
        successors: for tokens, their usual successors, the likeliest first.
    """

    def __init__(self, prompt_tokens: int, successors: Mapping[int, Sequence[int]]) -> None:
        self._next = max(2, prompt_tokens)  # place of the next token to judge
        self._successors = successors
        self._after: dict[int, int] | None = None  # for a token, the place after its latest occurrence
        self._after_two: dict[tuple[int, int], int] = {}  # the same for two tokens
        self._place = -1  # of the next token, if the text goes on as it did before; -1 where that is not known

    def kept(self, text: Sequence[int]) -> list[int]:
        """Tokens that each of several turns would have kept, one after the other, since the last call."""
        if self._after is None or len(text) < self._next:
            self._next, self._place = max(2, min(self._next, len(text))), -1
            self._after = self._read(text)
        after, after_two, usual, found = self._after, self._after_two, self._successors, list[int]()
        kept, is_full, place = 0, False, self._place
        for at in range(self._next, len(text)):
            token, last = text[at], text[at - 1]
            pair = text[at - 2], last
            if place < 0:
                place = after_two.get(pair, -1)
            is_match = place >= 0 and text[place] == token
            if is_full:  # this is the verifier's own token
                found.append(kept)
                kept, is_full = 0, False
            elif is_match:
                kept += 1
                is_full = kept == _MOST_KEPT
            elif kept:
                found.append(kept)
                kept = 0
            elif token in usual.get(last, ())[: _RANKS - (place >= 0)] or (
                (seen := after.get(last, 0)) and text[seen] == token
            ):
                kept, is_full = 1, True
            else:
                found.append(0)
            place = place + 1 if is_match else -1
            after[last] = after_two[pair] = at
        if kept:
            found.append(kept)
        self._next, self._place = max(2, len(text)), place
        return found

    def _read(self, text: Sequence[int]) -> dict[int, int]:
        """Look up the tokens that are not judged."""
        end = self._next
        first = max(0, end - _MOST_READ)
        read = text[first : end - 1]  # the last one's successor is the next to be judged
        self._after_two = dict(zip(pairwise(read), range(first + 2, end), strict=False))
        return dict(zip(read, range(first + 1, end), strict=True))
