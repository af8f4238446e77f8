"""What followed single tokens last: `Successors`. Who drafts from them is in `recycle`."""

from __future__ import annotations

_MOST = 1 << 14  # tokens whose successors are kept; some 150 bytes each


class Successors:
    """The latest successor of each token, and how often in a row it was that one. The oldest are forgotten."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def note(self, token: int, successor: int) -> None:
        """`successor` followed `token`."""
        known = self._known.pop(token, None)
        self._known[token] = (successor, known[1] + 1 if known is not None and known[0] == successor else 1)
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]

    def of(self, token: int) -> tuple[int, int]:
        """The successor of `token` and how often in a row it was; (-1, 0) when none is known."""
        return self._known.get(token, (-1, 0))
