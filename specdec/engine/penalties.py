"""Penalties for tokens that a text has already, and the count of them at any place of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdec.checks import as_number
from specdec.errors import OptionError

# Wider than any use; within them logits stay finite.
_LEAST_REPETITION, _MOST_REPETITION = 1e-6, 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """What tokens lose that are in the text already.

    The repetition penalty comes first, then those of frequency and presence (the order of vLLM).

    Attributes:
        presence: subtracted from the logit of every token of the answer so far (OpenAI's API reference).
        frequency: subtracted as many times as the token occurs in the answer so far (the same).
        repetition: logits of tokens of the prompt and the answer are divided by it where they are positive and
            multiplied with it where they are negative (Keskar et al., "CTRL", 1909.05858, section 4.1).

    Raises:
        OptionError: a value is out of range.
    """

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("presence_penalty", self.presence), ("frequency_penalty", self.frequency)):
            if not -2 <= as_number(value) <= 2:
                raise OptionError(name, f"must be a number from -2 to 2, not {value!r}")
        if not _LEAST_REPETITION <= as_number(self.repetition) <= _MOST_REPETITION:
            raise OptionError(
                "repetition_penalty", f"must be a number from 0.000001 to 1000000, not {self.repetition!r}"
            )

    def __bool__(self) -> bool:
        """Whether they change anything."""
        return bool(self.presence or self.frequency or self.repetition != 1)


class History:
    """What a growing text says at any place: all of its ids as an array, and how often each occurs.

    It tracks the text by itself: if the text was longer at the last call, it was rewound, and is counted again.

    Args:
        tokens: prompt and answer so far; grows between calls, and is not changed here.
        prompt_length: tokens of it that are the prompt.
        vocab_size: V.
    """

    def __init__(self, tokens: Sequence[int], prompt_length: int, vocab_size: int) -> None:
        self._tokens, self._prompt_length = tokens, prompt_length
        self._ids = np.empty(max(64, 2 * len(tokens)), np.int64)
        self._counts = np.zeros(vocab_size, np.int32)  # in the answer
        self._is_known = np.zeros(vocab_size, np.bool_)  # in prompt or answer
        # Tokens of the answer, and those of prompt and answer, each once; the arrays are made when first needed.
        self._answered, self._known = _Distinct(), _Distinct()
        self._length = 0

    def ids(self, drafted: Sequence[int]) -> NDArray[np.int64]:
        """Every token before the place after `drafted`, int64 (T,); the next call overwrites it."""
        self._follow(len(drafted))
        end = self._length + len(drafted)
        self._ids[self._length : end] = drafted
        view = self._ids[:end]
        view.flags.writeable = False
        return view

    def penalise(self, logits: NDArray[np.float32], penalties: Penalties, drafted: Sequence[int]) -> None:
        """Apply penalties at the place after `drafted` to logits float32 (V,), in place."""
        self._follow(0)
        counts = self._counts
        new = dict.fromkeys(drafted)
        if penalties.repetition != 1:
            at = self._known.with_more([token for token in new if not self._is_known[token]])
            values, factor = logits[at], np.float32(penalties.repetition)
            logits[at] = np.where(values > 0, values / factor, values * factor)
        at = self._answered.with_more([token for token in new if not counts[token]])
        for token in drafted:
            counts[token] += 1
        if penalties.frequency or penalties.presence:
            logits[at] -= np.float32(penalties.frequency) * counts[at]
            logits[at] -= np.float32(penalties.presence)
        for token in drafted:
            counts[token] -= 1

    def _follow(self, room: int) -> None:
        """Take in what the text has gained, and make room for this number of ids after it."""
        tokens = self._tokens
        if len(tokens) < self._length:
            self._counts[:], self._is_known[:] = 0, False
            self._answered, self._known, self._length = _Distinct(), _Distinct(), 0
        if len(tokens) + room > len(self._ids):
            grown = np.empty(2 * (len(tokens) + room), np.int64)
            grown[: self._length] = self._ids[: self._length]
            self._ids = grown
        if len(tokens) == self._length:
            return
        self._ids[self._length : len(tokens)] = tokens[self._length :]
        for position in range(self._length, len(tokens)):
            token = tokens[position]
            if not self._is_known[token]:
                self._is_known[token] = True
                self._known.add(token)
            if position >= self._prompt_length:
                if not self._counts[token]:
                    self._answered.add(token)
                self._counts[token] += 1
        self._length = len(tokens)


class _Distinct:
    """Token ids, each once, and an array of them."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._array = np.empty(0, np.intp)

    def add(self, token: int) -> None:
        """Add one that is not there."""
        self._ids.append(token)

    def with_more(self, tokens: Sequence[int]) -> NDArray[np.intp]:
        """All of them and `tokens`, which are not there."""
        if len(self._array) < len(self._ids):
            self._array = np.array(self._ids, np.intp)
        return np.concatenate([self._array, np.array(tokens, np.intp)]) if tokens else self._array
