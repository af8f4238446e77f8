"""A runtime that chooses tokens: results of rows, and turns that it drafts itself; `base` has the passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


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


@runtime_checkable
class Surveyor(Protocol):
    """A runtime whose turns (`Rows.recycling`) draft tokens that usually follow others, if it is told which do.

    Attributes:
        knows_successors: `use_successors` was called.
    """

    @property
    def knows_successors(self) -> bool:
        """Whether `use_successors` was called."""
        ...

    def survey(self, prefix: Sequence[int], tokens: Sequence[int]) -> NDArray[np.int32]:
        """Find the likeliest tokens after a text and one further token, for each of several tokens.

        Args:
            prefix: the text, at least two tokens.
            tokens: N token ids.

        Returns:
            int32 (N, 8), the likeliest first.
        """
        ...

    def use_successors(self, tokens: NDArray[np.int32], successors: NDArray[np.int32]) -> None:
        """Draft with these from the next text on, until the text itself shows other ones.

        Args:
            tokens: int32 (N,), token ids.
            successors: int32 (N, 8), for each the likeliest tokens after it.
        """
        ...
