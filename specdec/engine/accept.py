"""The rule by which draft tokens are kept. Drawing a token from logits is in `sampler`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from specdec.checks import check_finite
from specdec.engine.chooser import Chooser
from specdec.runtimes.base import Choice


class ChosenRows:
    """A chooser for rows of which the runtime has chosen the likeliest token: greedy decoding without rules.

    To `accept` it is as any `Chooser`, with a `Choice` for a row of logits.
    """

    def __call__(self, choice: Choice, position: int, drafted: Sequence[int] = ()) -> int:  # noqa: ARG002
        """The token at `position`."""
        return self.draw(choice, position)

    def shape(self, choice: Choice, drafted: Sequence[int]) -> Choice:  # noqa: ARG002
        """The choice itself."""
        return choice

    def draw(self, choice: Choice, position: int) -> int:
        """The token that was chosen.

        Raises:
            ModelOutputError: the largest logit is not finite.
        """
        check_finite(choice.highest, position)
        return choice.token

    def allows(self, choice: Choice, token: int, drafted: Sequence[int]) -> bool:  # noqa: ARG002
        """Any token can come."""
        return True


class Verdict(NamedTuple):
    """What the verifier says to a draft.

    Attributes:
        kept: numbers of the draft tokens kept, from the first on; of a tree, one path.
        bonus_token: the verifier's own token after them.
        logits: float32 (V,), what it was drawn from; a `Choice` where the runtime chose.
    """

    kept: Sequence[int]
    bonus_token: int
    logits: Any


def accept(
    draft: Sequence[int],
    logits: np.ndarray | Sequence[Choice],
    chooser: Chooser | ChosenRows,
    *,
    position: int,
    parents: Sequence[int] | None = None,
    trusted: Sequence[bool] = (),
) -> Verdict:
    """Keep the longest path of the draft that the verifier would have produced itself.

    One rule for greedy decoding and for sampling, for chains and trees: from each row that is kept the verifier draws
    its own token, as plain decoding would, and the draft token that follows there and equals it is kept. The row of a
    kept token has seen exactly the tokens that plain decoding would have seen, so every token that comes out is plain
    decoding's. Where no draft token equals the verifier's, its own token comes last; so does the token that the last
    row gives after a draft that is kept whole. No ratio of probabilities takes part: mixed with shared noise it would
    bias the output.

    Args:
        draft: k token ids.
        logits: float32 (k + 1, V) of the pass over the pending token and the draft, or k + 1 choices.
        chooser: the one that the drafter used; `ChosenRows` for choices.
        position: absolute position of the first token that this round emits.
        parents: None for a chain, whose first token stands at `position`; else for each token the number of the
            earlier one that it follows, or -1 for the pending token.
        trusted: draft tokens to keep without a check, where they are reached and allowed; empty checks all. The rows
            after a trusted token have seen it, so what is checked there is checked against the text as it is.
    """
    judge: Any = chooser
    if parents is None:
        for index, drafted in enumerate(draft):
            path = draft[:index]
            if trusted and trusted[index] and judge.allows(logits[index], drafted, path):
                continue
            shaped = judge.shape(logits[index], path)
            token = judge.draw(shaped, position + index)
            if token != drafted:
                return Verdict(range(index), token, shaped)
        shaped = judge.shape(logits[len(draft)], draft)
        return Verdict(range(len(draft)), judge.draw(shaped, position + len(draft)), shaped)
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(parents):
        children.setdefault(parent, []).append(index)
    kept: list[int] = []
    last = -1
    while True:
        followers, row = children.get(last, ()), logits[last + 1]
        path = [draft[index] for index in kept]
        found = next(
            (one for one in followers if trusted and trusted[one] and judge.allows(row, draft[one], path)), None
        )
        if found is None:
            shaped = judge.shape(row, path)
            token = judge.draw(shaped, position + len(kept))
            found = next((index for index in followers if draft[index] == token), None)
            if found is None:
                return Verdict(kept, token, shaped)
        kept.append(found)
        last = found
