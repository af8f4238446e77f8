"""Answers that ended, for drafters that look text up: `EarlierAnswers` of one owner, `Archive` of all.

Nothing of an answer reaches anyone but its owner, not even as a draft: how fast tokens come would tell.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from threading import Lock

from specdec.drafters.successors import Successors
from specdec.drafters.suffix_index import SuffixIndex

_CONTEXT = 16  # tokens before an answer that its first ones are found by
_TOKENS = 1 << 16  # of answers in an index; with the one before it, what an owner's lookups see
_ALL_TOKENS = 1 << 19  # of all owners: about 130 bytes each


class EarlierAnswers:
    """What followed which tokens in the latest answers of one owner.

    There are two indices: when the newer one is full it becomes the older, which is forgotten. An answer is indexed
    when something is looked up after it: where many answers are decoded together, that may never be.

    Attributes:
        successors: what followed single tokens.
    """

    def __init__(self) -> None:
        self._newer, self._older = SuffixIndex(), SuffixIndex()
        self._waiting: deque[tuple[list[int], int]] = deque()  # texts to be indexed, and where each answer begins
        self._waiting_tokens = 0
        self.successors = Successors()

    @property
    def newer(self) -> SuffixIndex:
        """Index of the latest answers."""
        self._index()
        return self._newer

    @property
    def older(self) -> SuffixIndex:
        """Index of the answers before those."""
        self._index()
        return self._older

    @property
    def tokens(self) -> int:
        """Tokens that are kept, of answers and their contexts, and successors of tokens."""
        return self._newer.tokens + self._older.tokens + self._waiting_tokens + len(self.successors)

    def add(self, text: Sequence[int], first: int) -> None:
        """Keep an answer: the tokens of `text` from `first` on. What came before is context, and nobody's draft."""
        first = max(first, len(text) - _TOKENS)
        begin = max(0, first - _CONTEXT)
        self._waiting.append((list(text[begin:]), first - begin))
        self._waiting_tokens += len(text) - begin
        while self._waiting_tokens - len(self._waiting[0][0]) >= 2 * _TOKENS:  # it would be forgotten
            self._waiting_tokens -= len(self._waiting.popleft()[0])

    def _index(self) -> None:
        """Index what waits for it."""
        while self._waiting:
            text, first = self._waiting.popleft()
            self._waiting_tokens -= len(text)
            self._newer.begin()
            self._newer.add(text[:first], counts=False)
            self._newer.add(text, first)
            if self._newer.tokens >= _TOKENS:
                self._older, self._newer = self._newer, SuffixIndex()


class Archive:
    """The earlier answers of each owner, those of the latest owners."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, EarlierAnswers] = OrderedDict()
        self._lock = Lock()  # requests arrive while passes run

    def of(self, owner: str) -> EarlierAnswers:
        """The answers of an owner."""
        with self._lock:
            found = self._owners.setdefault(owner, EarlierAnswers())
            self._owners.move_to_end(owner)
            while len(self._owners) > 1 and sum(one.tokens + 1 for one in self._owners.values()) > _ALL_TOKENS:
                self._owners.popitem(last=False)
            return found
