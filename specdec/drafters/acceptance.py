"""How often proposals turn out right, by comparing them with the text that came: `ProposalBook`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

_MEMORY = 0.85  # weight of the past: some six proposals count


class ProposalBook:
    """Running estimates of the chance that a proposed token is kept when those before it are.

    Proposals that were never sent to the verifier count like any other: the text shows whether they were right.

    Args:
        untried: estimate for a kind of proposal that was never seen.
    """

    def __init__(self, untried: float) -> None:
        self._untried = untried
        self._rates: dict[Hashable, float] = {}
        self._open: list[tuple[Hashable, int, list[int]]] = []

    def rate(self, kind: Hashable) -> float:
        """The estimate for one kind of proposal."""
        return self._rates.get(kind, self._untried)

    def note(self, kind: Hashable, position: int, tokens: Sequence[int]) -> None:
        """Remember a proposal for `position` onwards until the text is there."""
        if tokens:
            self._open.append((kind, position, list(tokens)))

    def learn(self, history: Sequence[int]) -> None:
        """Compare what was proposed with what came."""
        for kind, position, tokens in self._open:
            came = history[position : position + len(tokens)]
            kept = next((k for k, (a, b) in enumerate(zip(tokens, came, strict=False)) if a != b), len(came))
            if tried := kept + (kept < len(came)):
                self._rates[kind] = _MEMORY * self.rate(kind) + (1 - _MEMORY) * kept / tried
        self._open.clear()
