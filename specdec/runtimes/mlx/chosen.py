"""What a step as one kernel writes of a row's choice, as `Choice`: see `kernels/cuda/step/step_choose.cuh`."""

from __future__ import annotations

import math

import numpy as np

from specdec.runtimes.base import Choice


def choices_of(found: np.ndarray) -> list[Choice]:
    """Choices of rows, from float32 (rows, CHOICE_WORDS): the two largest logits, sum of weights, sum of weighted
    distances from the largest, and the bits of the token."""
    tokens = found[:, 4].copy().view(np.int32).tolist()
    return [choice_of(token, *numbers) for token, numbers in zip(tokens, found[:, :4].tolist(), strict=True)]


def choice_of(token: int, most: float, second: float, weight: float, moment: float) -> Choice:
    """A choice from the two largest logits, the sum of weights, and that of weighted distances from the largest."""
    if not math.isfinite(most):
        return Choice(token, most, math.nan, math.nan, math.nan)
    return Choice(token, most, max(0.0, math.log(weight) - moment / weight), 1.0 / weight, most - second)


def words_of(logits: np.ndarray) -> np.ndarray:
    """The words that a step would write for rows of logits float32 (rows, V): float32 (rows, 8), see `choices_of`."""
    made = np.zeros((len(logits), 8), np.float32)
    for words, row in zip(made, logits, strict=True):
        wrong = np.isnan(row)
        token = int(np.argmax(wrong if wrong.any() else row))
        distance = row.astype(np.float64) - row[token]
        with np.errstate(invalid="ignore"):
            weight = np.exp(distance)
            moment = np.where(weight > 0, weight * distance, 0.0)
        words[:4] = row[token], np.delete(row, token).max(initial=-np.inf), weight.sum(), moment.sum()
        words[4:5].view(np.int32)[0] = token
    return made
