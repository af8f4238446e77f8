"""The rule by which draft tokens are kept. Drawing a token from logits is in `sampler`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from specdec.engine.sampler import Sampler


class Verdict(NamedTuple):
    """What the verifier says to a draft.

    Attributes:
        accepted: leading draft tokens kept.
        bonus_token: the verifier's own token after them.
    """

    accepted: int
    bonus_token: int


def accept(
    draft: Sequence[int], logits: np.ndarray, sampler: Sampler, *, position: int, trusted: Sequence[bool] = ()
) -> Verdict:
    """Keep the longest prefix of the draft that the verifier would have produced itself.

    One rule for greedy decoding and for sampling: the verifier draws its own token at each position, as plain decoding
    would, and a draft token is kept when it is that token. Row j of the logits has seen exactly the tokens that plain
    decoding would have seen as long as all drafts before j were kept, so every token that comes out is plain
    decoding's. At the first draft token that differs, the verifier's token takes its place; after a draft that is kept
    whole, the last row gives one token more. No ratio of probabilities takes part: mixed with shared noise it would
    bias the output.

    Args:
        draft: k token ids, the first one for `position`.
        logits: float32 (k + 1, V) of the pass over the pending token and the draft.
        sampler: the sampler that the drafter used.
        position: absolute position of the first token that this round emits.
        trusted: draft tokens to keep without a check, where they are reached; empty checks all. The rows behind a
            trusted token have seen it, so what is checked there is checked against the text as it is.
    """
    for index, drafted in enumerate(draft):
        if trusted and trusted[index]:
            continue
        token = sampler(logits[index], position + index)
        if token != drafted:
            return Verdict(index, token)
    return Verdict(len(draft), sampler(logits[len(draft)], position + len(draft)))
