"""Answers that ended, for drafters that look text up: `EarlierAnswers` of one owner, `Archive` of all.

Nothing of an answer reaches anyone but its owner, not even as a draft: how fast tokens come would tell.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from specdec.drafters.ngram_index import NgramIndex

_LEAST = 4  # tokens of context that speak for what followed in another text
_TOKENS = 1 << 14  # of answers in an index; with the one before it, what an owner's lookups see
_ALL_TOKENS = 1 << 17  # of all owners: half a kilobyte each


class EarlierAnswers:
    """What followed which few tokens in the latest answers of one owner.

    There are two indices: when the newer one is full it becomes the older, which is forgotten.

    Args:
        longest: most tokens of context to compare.
    """

    def __init__(self, longest: int) -> None:
        self._shortest, self._longest = min(_LEAST, longest), longest
        self._newer, self._older = (NgramIndex(self._shortest, longest) for _ in range(2))
        self._newer_tokens = self._older_tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens of answers that are indexed."""
        return self._newer_tokens + self._older_tokens

    def add(self, text: Sequence[int], first: int) -> None:
        """Index an answer: the tokens of `text` from `first` on. What came before is context."""
        first = max(first, len(text) - _TOKENS)
        self._newer.add(text, first)
        self._newer_tokens += len(text) - first
        if self._newer_tokens >= _TOKENS:
            self._older, self._older_tokens = self._newer, self._newer_tokens
            self._newer, self._newer_tokens = NgramIndex(self._shortest, self._longest), 0

    def continuation(self, suffix: Sequence[int]) -> tuple[int, int]:
        """What followed the longest known end of `suffix`, and how long that end is; (-1, 0) when none is known."""
        newer = self._newer.continuation(suffix)
        if newer[1] == self._longest:
            return newer
        older = self._older.continuation(suffix)
        return older if older[1] > newer[1] else newer


class Archive:
    """The earlier answers of each owner, those of the latest owners."""

    def __init__(self) -> None:
        self._owners: OrderedDict[tuple[str, int], EarlierAnswers] = OrderedDict()

    def of(self, owner: str, longest: int) -> EarlierAnswers:
        """The answers of an owner, for lookups that compare `longest` tokens."""
        key = owner, longest
        found = self._owners.setdefault(key, EarlierAnswers(longest))
        self._owners.move_to_end(key)
        while len(self._owners) > 1 and sum(one.tokens + 1 for one in self._owners.values()) > _ALL_TOKENS:
            self._owners.popitem(last=False)
        return found
