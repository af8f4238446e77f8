"""What a runtime that chooses tokens shows of rows, and of turns that it drafts itself; `base` has the passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """What greedy decoding needs of a row of logits: the likeliest token, and the shape of the distribution.

    Attributes:
        token: of the largest logit, the first of equal ones; NaN counts as largest.
        highest: the largest logit.
        entropy: at temperature 1, in nats.
        top_probability: the largest probability, at temperature 1.
        margin: largest minus second largest logit.
    """

    token: int
    highest: float
    entropy: float
    top_probability: float
    margin: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that a pass drafted and verified by itself.

    Attributes:
        tokens: drafted.
        parents: for each the number of the one that it follows, -1 for the pending token.
        kept: numbers of those that the verifier chose, from the first on: one path.
        choices: of the rows of the pending token and of each that was kept; the last one is the next pending token.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    kept: Sequence[int]
    choices: Sequence[Choice]


@dataclass(frozen=True, slots=True)
class Recycling:
    """A wish that a pass drafts and verifies by itself, turn after turn: trees of what followed the end of the text
    before, and of tokens that were likeliest after others lately.

    Attributes:
        text: all tokens so far, the pending one included: the sequence's own list, which grows. What was learnt of it
            serves the passes with the same list.
        rows: most rows of a turn.
        limit: most tokens that the text may have.
    """

    text: Sequence[int]
    rows: int
    limit: int
