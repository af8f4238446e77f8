"""Draft heads of the reference runtime: columns of the logits layer, gathered. `ReferenceHead`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.kernels.reference.mlx_backend import mx
from specdec.kernels.reference.mlx_matrix import FloatMatrix
from specdec.runtimes.checks import head_tokens

_OWN_TOKENS = 4096  # that a head has room for beside those that it began with
_PARTS = 16  # arrays that are multiplied one after the other, at most about


class ReferenceHead:
    """The tokens that the drafts of one sequence score, with float32 weights. A `DraftHead`.

    Args:
        weights: of the logits layer.
        vocab_size: of the model.
        device: that the weights lie on.
        tokens: to begin with.

    Raises:
        InvalidArgumentError: there is no token, or one is outside the vocabulary.
    """

    def __init__(self, weights: FloatMatrix, vocab_size: int, device: Any, tokens: Sequence[int]) -> None:
        if not tokens:
            raise InvalidArgumentError("a draft head needs at least one token")
        self._weights, self._vocab_size, self._device = weights, vocab_size, device
        self._common = self._gathered(head_tokens(tuple(dict.fromkeys(tokens)), vocab_size))
        self._fixed = frozenset(self._common[0].tolist())
        self._own: dict[int, None] = {}  # in the order in which they came
        self._parts: list[tuple[NDArray[np.int32], Any]] = []

    def __len__(self) -> int:
        return len(self._fixed) + len(self._own)

    def add(self, tokens: Sequence[int]) -> None:
        """Score these tokens, too.

        Raises:
            InvalidArgumentError: one is outside the vocabulary.
        """
        new = [token for token in dict.fromkeys(tokens) if token not in self._fixed and token not in self._own]
        ids = head_tokens(new, self._vocab_size)
        if not new:
            return
        self._own.update(dict.fromkeys(new))
        for token in list(self._own)[: max(0, len(self._own) - _OWN_TOKENS)]:
            del self._own[token]
        if len(self._own) == sum(len(part) for part, _ in self._parts) + len(new) and len(self._parts) < _PARTS:
            self._parts.append(self._gathered(ids))
        else:
            self._parts = [self._gathered(head_tokens(list(self._own), self._vocab_size))]

    def multiply(self, row: Any) -> Any:
        """row (1, in) times the weights of the head's tokens: (1, V), with 0 for the others."""
        found = np.zeros((1, self._vocab_size), np.float32)
        for tokens, weights in (self._common, *self._parts):
            found[0, tokens] = np.array(row @ weights)[0]
        return mx.array(found)

    def hide_others(self, logits: NDArray[np.float32]) -> None:
        """Give the tokens that are not the head's a logit of -inf, in every row of logits."""
        others = np.ones(self._vocab_size, np.bool_)
        for tokens, _ in (self._common, *self._parts):
            others[tokens] = False
        logits[:, others] = -np.inf

    def _gathered(self, tokens: NDArray[np.int32]) -> tuple[NDArray[np.int32], Any]:
        """The tokens, and their weights (in, n)."""
        with mx.stream(self._device):
            return tokens, self._weights.columns(tokens)
