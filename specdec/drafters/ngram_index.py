"""What followed which few tokens: `NgramIndex`, built token by token. Who asks it, and when, is in `ngram`."""

from __future__ import annotations

from collections.abc import Sequence


class NgramIndex:
    """Maps every n-gram of a text, n from `shortest` to `longest`, to the token that followed it most often.

    Of equally frequent ones the latest wins. Adding a token takes two dictionary updates for each n, whatever the
    length of the text; so does looking one up.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest, self.longest = shortest, longest
        self._counts: dict[tuple[int, ...], int] = {}  # an n-gram and its continuation in one key
        self._best: dict[tuple[int, ...], tuple[int, int]] = {}  # n-gram to (count, continuation)
        self._length = 0

    def follow(self, tokens: Sequence[int]) -> None:
        """Index what `tokens` holds beyond what it held at the last call."""
        counts, best = self._counts, self._best
        for end in range(self._length, len(tokens)):
            window = tuple(tokens[max(0, end - self.longest) : end + 1])
            for start in range(max(0, len(window) - 1 - self.longest), len(window) - self.shortest):
                whole = window[start:]
                count = counts[whole] = counts.get(whole, 0) + 1
                gram = whole[:-1]
                known = best.get(gram)
                if known is None or count >= known[0]:
                    best[gram] = (count, whole[-1])
        self._length = len(tokens)

    def continuation(self, suffix: Sequence[int]) -> tuple[int, int]:
        """What followed the longest known end of `suffix`, and how long that end is; (-1, 0) when none is known."""
        best = self._best
        for n in range(min(self.longest, len(suffix)), self.shortest - 1, -1):
            known = best.get(tuple(suffix[-n:]))
            if known is not None:
                return known[1], n
        return -1, 0
