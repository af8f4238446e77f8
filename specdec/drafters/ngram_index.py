"""What followed which few tokens: `NgramIndex`, built token by token. Who asks it, and when, is in `ngram`."""

from __future__ import annotations

from collections.abc import Sequence


class NgramIndex:
    """Maps every n-gram of a text, n from `shortest` to `longest`, to the token that followed it most often.

    Of equally frequent ones the latest wins. Adding a token takes a dictionary update for each n, or two, whatever the
    length of the text; looking one up takes as many.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest, self.longest = shortest, longest
        self._best: dict[tuple[int, ...], tuple[int, int]] = {}  # n-gram to (count, continuation)
        # How often an n-gram was followed by something else than its best continuation, where that happened: rarely.
        self._others: dict[tuple[int, ...], dict[int, int]] = {}
        self._length = 0

    def follow(self, tokens: Sequence[int]) -> None:
        """Index what `tokens` holds beyond what it held at the last call."""
        self.add(tokens, self._length)
        self._length = len(tokens)

    def add(self, tokens: Sequence[int], first: int) -> None:
        """Index the tokens of a text from number `first` on."""
        best = self._best
        for end in range(max(first, self.shortest), len(tokens)):
            token, window = tokens[end], tuple(tokens[max(0, end - self.longest) : end])
            for start in range(len(window) - self.shortest + 1):
                gram = window[start:]
                known = best.get(gram)
                if known is None:
                    best[gram] = (1, token)
                elif known[1] == token:
                    best[gram] = (known[0] + 1, token)
                else:
                    self._add_other(gram, token, known)

    def _add_other(self, gram: tuple[int, ...], token: int, known: tuple[int, int]) -> None:
        """Count `token` after `gram`, whose most frequent continuation so far is `known`."""
        others = self._others.setdefault(gram, {})
        count = others.pop(token, 0) + 1
        if count >= known[0]:
            others[known[1]] = known[0]
            self._best[gram] = (count, token)
        else:
            others[token] = count

    def continuation(self, suffix: Sequence[int]) -> tuple[int, int]:
        """What followed the longest known end of `suffix`, and how long that end is; (-1, 0) when none is known."""
        best = self._best
        for n in range(min(self.longest, len(suffix)), self.shortest - 1, -1):
            known = best.get(tuple(suffix[-n:]))
            if known is not None:
                return known[1], n
        return -1, 0
