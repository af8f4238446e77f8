"""Answers that ended, for drafters that look text up: `EarlierAnswers` of one owner, `Archive` of all.

Nothing of an answer reaches anyone but its owner, not even as a draft: how fast tokens come would tell.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from specdec.drafters.successors import Successors
from specdec.drafters.suffix_index import SuffixIndex

_CONTEXT = 16  # tokens before an answer that its first ones are found by
_TOKENS = 1 << 16  # of answers in an index; with the one before it, what an owner's lookups see
_ALL_TOKENS = 1 << 19  # of all owners: about 130 bytes each


class EarlierAnswers:
    """What followed which tokens in the latest answers of one owner.

    There are two indices: when the newer one is full it becomes the older, which is forgotten.

    Attributes:
        newer: index of the latest answers.
        older: index of those before them.
        successors: what followed single tokens.
    """

    def __init__(self) -> None:
        self.newer, self.older = SuffixIndex(), SuffixIndex()
        self.successors = Successors()

    @property
    def tokens(self) -> int:
        """Tokens that are kept, of answers and their contexts, and successors of tokens."""
        return self.newer.tokens + self.older.tokens + len(self.successors)

    def add(self, text: Sequence[int], first: int) -> None:
        """Index an answer: the tokens of `text` from `first` on. What came before is context, and nobody's draft."""
        first = max(first, len(text) - _TOKENS)
        self.newer.begin()
        self.newer.add(text[max(0, first - _CONTEXT) : first], counts=False)
        self.newer.add(text, first)
        if self.newer.tokens >= _TOKENS:
            self.older, self.newer = self.newer, SuffixIndex()


class Archive:
    """The earlier answers of each owner, those of the latest owners."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, EarlierAnswers] = OrderedDict()

    def of(self, owner: str) -> EarlierAnswers:
        """The answers of an owner."""
        found = self._owners.setdefault(owner, EarlierAnswers())
        self._owners.move_to_end(owner)
        while len(self._owners) > 1 and sum(one.tokens + 1 for one in self._owners.values()) > _ALL_TOKENS:
            self._owners.popitem(last=False)
        return found
