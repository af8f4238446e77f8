"""Log-probabilities of tokens, from the raw logits: before masks, penalties and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specdec.engine.sampler import top_k_ids
from specdec.errors import ModelOutputError

MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability, and those of the likeliest tokens at its place.

    Attributes:
        token: id.
        logprob: natural logarithm of softmax(logits)[token].
        top: the likeliest tokens, likeliest first, the lower id first where they are equally likely; as many as were
            asked for, each without a `top` of its own.
    """

    token: int
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = {"token": self.token, "logprob": self.logprob}
        return found | {"top": [{"token": one.token, "logprob": one.logprob} for one in self.top]}


def token_logprob(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
    """The log-probability of `token`, and of the `count` likeliest.

    Args:
        logits: float32 (V,), as the model gave them.
        token: id.
        count: 0 or more.

    Raises:
        ModelOutputError: the logits are not finite.
    """
    highest = float(logits.max())
    if not math.isfinite(highest):
        raise ModelOutputError(
            f"the model's logits are not finite (the largest is {highest}): the model may be damaged"
        )
    mass = math.log(float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))

    def logprob(one: int) -> float:
        return float(logits[one]) - highest - mass

    likeliest: Sequence[int] = ()
    if count:
        ids = top_k_ids(logits, min(count, len(logits)))
        likeliest = ids[np.argsort(-logits[ids], kind="stable")].tolist()
    return TokenLogprob(token, logprob(token), tuple(TokenLogprob(one, logprob(one)) for one in likeliest))


def path_logprobs(logits: np.ndarray, kept: Sequence[int], tokens: Sequence[int], count: int) -> list[TokenLogprob]:
    """Log-probabilities of a round's tokens, each from the row of the token before it.

    Args:
        logits: float32 (M, V), rows of the pending token and the draft.
        kept: indices of the draft tokens that were kept.
        tokens: the kept tokens, then the verifier's own.
        count: number of likeliest tokens to report with each.
    """
    rows = [0, *(index + 1 for index in kept)]
    return [token_logprob(logits[row], token, count) for row, token in zip(rows, tokens, strict=True)]
