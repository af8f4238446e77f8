"""Results of a runtime that chooses tokens: of rows, and of turns that it drafts itself; `base` has the passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Choice(NamedTuple):
    """Summary of a row of logits for greedy decoding: the likeliest token, and the shape of the distribution.

    Attributes:
        token: token of the largest logit, the first of equal ones; NaN counts as largest.
        highest: the largest logit.
        entropy: entropy at temperature 1, in nats.
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
        tokens: drafted tokens.
        parents: for each token the index of its parent, -1 for the pending token.
        kept: indices of the tokens that the verifier chose, from the first on: one path.
        choices: choices of the pending token's row and of each kept row; the last is the next pending token.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    kept: Sequence[int]
    choices: Sequence[Choice]


@dataclass(frozen=True, slots=True)
class Recycling:
    """Request that a pass drafts and verifies by itself, turn after turn. Its trees hold the tokens after an earlier
    occurrence of the text's end, and tokens that were likeliest after others lately.

    Attributes:
        text: all tokens so far, the pending one included: the sequence's own list, which grows. Successors learnt from
            it are used by later passes with the same list.
        rows: most rows of a turn.
        limit: most tokens that the text may have.
        owner: whose text it is: successors learnt from the owner's text just before are used as well. None
            for nobody's: the text begins with nothing, and leaves nothing.
    """

    text: Sequence[int]
    rows: int
    limit: int
    owner: str | None = None
