"""Log-probabilities of the library in the form of the server's events, which tell a token's text and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

from specdec.engine.logprobs import TokenLogprob as Found
from specdec.server.events import TokenLogprob
from specdec.tokenizers import Tokenizer

Describe = Callable[[Found], TokenLogprob]


def describer(tokenizer: Tokenizer | None) -> Describe:
    """A function that adds text and bytes of tokens to their log-probabilities.

    Args:
        tokenizer: of the model; without one, texts are empty.
    """

    def describe(found: Found) -> TokenLogprob:
        top = tuple(describe(one) for one in found.top)
        return TokenLogprob(found.token, *_spelled(tokenizer, found.token), _in_json(found.logprob), top)

    return describe


def first_of_prompt(tokenizer: Tokenizer | None, token: int) -> TokenLogprob:
    """The entry of a prompt's first token, whose log-probability nothing tells."""
    return TokenLogprob(token, *_spelled(tokenizer, token), math.nan)


def _spelled(tokenizer: Tokenizer | None, token: int) -> tuple[str, bytes]:
    if tokenizer is None:
        return "", b""
    return tokenizer.decode([token], continues=True), tokenizer.token_bytes(token)


def _in_json(logprob: float) -> float:
    """JSON knows no infinity: OpenAI writes -9999 for what cannot be."""
    return logprob if math.isfinite(logprob) else -9999.0
