"""Next-token distributions on a text, against the dense model's: what one passage shows at one setting.

The whole passage runs at the setting's effort, the history included: this is the model that a user would talk to at
that effort. (How often a single draft step agrees after a history of full quality is another question, and
`specdec tune` and `specdec bench` answer it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdec.runtimes.base import Pass, Runtime, forward_one

_SLICE = 16  # rows of logits that are taken to float64 at a time: large vocabularies would fill the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageScore:
    """Sums over the predictions of a passage: every token but the first is predicted from those before it.

    Attributes:
        count: predictions.
        nll: negative log-likelihood of the text's own tokens, nats.
        nll_increase_sq: squares of what that is above the dense model's.
        kl: KL(dense || setting), nats.
        kl_sq: its squares.
        agreed: predictions whose likeliest token is the dense model's (the lowest id of equally likely ones).
        cosine: for each layer, cosine between the hidden states after it and the dense model's; empty when unknown.
    """

    count: int
    nll: float
    nll_increase_sq: float
    kl: float
    kl_sq: float
    agreed: int
    cosine: list[float]


def run_passage(runtime: Runtime, tokens: Sequence[int], *, view: str, effort: float) -> Pass:
    """Run a passage in one go, from an empty cache."""
    return forward_one(
        runtime, tokens, runtime.new_cache(len(tokens)), effort=effort, view=view, states=runtime.info.shows_states
    )


def score_passage(tokens: Sequence[int], dense: Pass, other: Pass) -> PassageScore:
    """Compare a setting's pass over a passage with the dense one."""
    targets = np.asarray(tokens[1:])
    parts = [
        _compare(dense.logits[first : first + _SLICE], other.logits[first : first + _SLICE], targets[first:][:_SLICE])
        for first in range(0, len(targets), _SLICE)
    ]
    nll, increase, kl, agreed = (np.concatenate(column) for column in zip(*parts, strict=True))
    cosine: list[float] = []
    if dense.states is not None and other.states is not None:
        predicting = slice(len(targets))  # the last token's states predict nothing that is known
        cosine = [
            float(_cosine(right[predicting], found[predicting]).sum())
            for right, found in zip(dense.states, other.states, strict=True)
        ]
    return PassageScore(
        count=len(targets),
        nll=float(nll.sum()),
        nll_increase_sq=float(increase @ increase),
        kl=float(kl.sum()),
        kl_sq=float(kl @ kl),
        agreed=int(agreed.sum()),
        cosine=cosine,
    )


def _compare(
    dense: NDArray[np.float32], other: NDArray[np.float32], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], ...]:
    """For each row: negative log-likelihood of its target, its excess over the dense model's, KL, and agreement."""
    rows = np.arange(len(targets))
    right, found = _log_softmax(dense[: len(rows)]), _log_softmax(other[: len(rows)])
    kl = np.einsum("rv,rv->r", np.exp(right), right - found)
    nll = -found[rows, targets]
    agreed = dense[: len(rows)].argmax(axis=1) == other[: len(rows)].argmax(axis=1)
    # Rounding can leave a divergence of equal distributions a hair below 0.
    return nll, nll + right[rows, targets], np.maximum(kl, 0.0), agreed.astype(np.float64)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each pair of rows, (T,); 1 for two rows of zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)  # type: ignore[assignment]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("th,th->t", a, b)
    return np.asarray(np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), 1.0))
