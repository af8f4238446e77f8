"""Texts whose keys and values are kept, and the longest beginning that a prompt shares with one: `Texts`.

`prompt_cache` and `admission` decide which texts are shared with whom, and how many are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdec.runtimes.base import Cache


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A text that was read.

    Attributes:
        key: owner of the text; requests with the same key may share it.
        tokens: int32, those that `cache` holds.
        cache: at verify quality; its owner writes to it no more.
    """

    key: object
    tokens: NDArray[np.int32]
    cache: Cache


class Texts:
    """Kept texts, from the one that was used longest ago to the latest. No text is the beginning of another one."""

    def __init__(self) -> None:
        self._kept: list[Text] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Text]:
        return iter(self._kept)

    def find(self, key: object, tokens: NDArray[np.int32]) -> tuple[Text | None, int]:
        """The text that shares most with the beginning of `tokens`, of equals the latest, and how much; (None, 0) when
        none shares a token."""
        best, length = None, 0
        for text in self._kept:
            if text.key == key:
                shared = shared_length(text.tokens, tokens)
                if shared and shared >= length:
                    best, length = text, shared
        return best, length

    def use(self, text: Text) -> None:
        """Make it the latest."""
        self._kept.remove(text)
        self._kept.append(text)

    def add(self, text: Text) -> list[Text]:
        """Keep a text as the latest; returns those that go because they are its beginning. One that is itself the
        beginning of another is not kept."""
        alike = [other for other in self._kept if other.key == text.key]
        known = next((other for other in alike if _begins(other.tokens, text.tokens)), None)
        if known is not None:
            self.use(known)
            return []
        gone = [other for other in alike if _begins(text.tokens, other.tokens)]
        for other in gone:
            self._kept.remove(other)
        self._kept.append(text)
        return gone

    def drop_oldest(self) -> Text:
        """Forget what was used longest ago."""
        return self._kept.pop(0)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def as_tokens(ids: Tokens[int]) -> NDArray[np.int32]:
    """Token ids as an array that compares quickly, int32 (T,)."""
    return np.asarray(ids, dtype=np.int32)


def shared_length(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """How many tokens two texts share from their beginnings on."""
    most = min(len(first), len(second))
    if not most or first[0] != second[0]:
        return 0
    differing = first[:most] != second[:most]
    where = int(differing.argmax())
    return where if differing[where] else most


def _begins(text: NDArray[np.int32], start: NDArray[np.int32]) -> bool:
    """Whether a text begins with another one."""
    return len(start) <= len(text) and shared_length(text, start) == len(start)
