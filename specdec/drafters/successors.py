"""What followed single tokens last: `Successors`. Who drafts from them is in `recycle`."""

from __future__ import annotations

_MOST = 1 << 14  # tokens whose successors are kept; some 100 bytes each


class Successors:
    """The latest successor of each token. The oldest are forgotten."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def note(self, token: int, successor: int) -> None:
        """`successor` followed `token`."""
        known = self._known
        known.pop(token, None)
        known[token] = successor
        if len(known) > _MOST:
            del known[next(iter(known))]

    def of(self, token: int) -> int:
        """The successor of `token`; -1 when none is known."""
        return self._known.get(token, -1)
