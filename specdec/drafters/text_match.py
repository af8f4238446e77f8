"""Length of the longest end of a text that occurred before: `TextMatch`, where nothing is proposed yet.

A lookup that proposes something indexes every token (`specdec.drafters.suffix_index`), which takes microseconds each,
the prompt's included. Where only the length is needed, comparing with the whole text takes less time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST = 9  # tokens that are compared: longer matches are as good
_SHORT = 2048  # tokens of a text up to which Python's own search takes less time than a copy
_NONE = np.empty(0, np.int32)


class TextMatch:
    """Follows a text that only grows, or loses tokens at its end."""

    def __init__(self) -> None:
        self._tokens = _NONE
        self._known = 0

    def length(self, text: Sequence[int]) -> int:
        """Tokens at the end of the text that occurred before in the same order, at most 9."""
        count = len(text)
        if count > _SHORT:
            return self._length_of_long(text)
        self._known = min(self._known, count)
        longest, place, last = 0, -1, text[-1] if count else -1
        try:
            while longest < MOST:
                place = text.index(last, place + 1, count - 1)
                length = 1
                while length < MOST and length <= place and text[place - length] == text[count - 1 - length]:
                    length += 1
                longest = max(longest, length)
        except ValueError:  # no other place
            pass
        return longest

    def _length_of_long(self, text: Sequence[int]) -> int:
        count, known = len(text), min(self._known, len(text))
        if count > len(self._tokens):
            self._tokens = np.concatenate([self._tokens[:known], np.empty(count - known + 1024, np.int32)])
        tokens = self._tokens
        tokens[known:count] = text[known:]
        self._known = count
        places = np.flatnonzero(tokens[: count - 1] == tokens[count - 1])
        length = 0
        while len(places) and length < MOST:
            length += 1
            places = places[places >= length]
            places = places[tokens[places - length] == tokens[count - 1 - length]]
        return length
