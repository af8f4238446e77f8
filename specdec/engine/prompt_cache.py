"""Keys and values of earlier texts, for prompts that begin like them: `PromptCache`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.model.effort import Efforts
from specdec.runtimes.base import Cache, Runtime

DEFAULT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A text that was read: `tokens` are those that `cache` holds."""

    runtime: Runtime
    efforts: Efforts
    tokens: NDArray[np.int32]
    cache: Cache


class PromptCache:
    """Keys and values of the texts of earlier answers: prompts, and what was answered.

    A prompt that begins like one of them is not read again as far as they agree, at any length. The answer is the same
    bit for bit, because a token's keys and values depend on the tokens before it and nothing else. The longest match
    serves; what was used longest ago goes first when the budget is used up. It may serve any number of answers at once,
    from any thread; each gets a cache of its own.

    Args:
        max_bytes: most bytes of keys and values to keep. An answer under way has its own, which do not count.

    Raises:
        InvalidArgumentError: `max_bytes` is not a positive whole number.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise InvalidArgumentError(f"max_bytes must be a positive whole number of bytes, not {max_bytes!r}")
        self.max_bytes = max_bytes
        self._entries: list[_Entry] = []  # the least recently used first
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes kept now; what texts share counts in each."""
        with self._lock:
            return sum(entry.cache.nbytes for entry in self._entries)

    def __len__(self) -> int:
        """Texts kept."""
        return len(self._entries)

    def take(self, runtime: Runtime, prompt: Sequence[int], *, efforts: Efforts, capacity: int) -> Cache | None:
        """A cache that holds as much of `prompt` as is known; None when that is nothing.

        Args:
            runtime: of the model.
            prompt: token ids; its last one is never in the cache.
            efforts: of verification.
            capacity: fewest tokens that have to fit.
        """
        wanted = np.asarray(prompt[:-1], dtype=np.int32)
        with self._lock:
            best, length = None, 0
            for entry in self._entries:
                if entry.runtime is runtime and entry.efforts == efforts:
                    shared = _shared(entry.tokens, wanted)
                    if shared >= length and shared:
                        best, length = entry, shared
            if best is None:
                return None
            self._entries.remove(best)
            self._entries.append(best)
            return best.cache.fork(length, capacity)

    def keep(self, runtime: Runtime, tokens: Sequence[int], cache: Cache, *, efforts: Efforts) -> None:
        """Take over the cache of an answer that will not go on.

        Args:
            runtime: of the model.
            tokens: prompt and answer, as far as the cache holds them or further.
            cache: at verify quality.
            efforts: of verification.
        """
        if not cache.length or cache.nbytes > self.max_bytes:
            return
        entry = _Entry(runtime, efforts, np.asarray(tokens[: cache.length], dtype=np.int32), cache)
        with self._lock:
            for other in self._entries:
                if other.runtime is runtime and other.efforts == efforts and _begins(other.tokens, entry.tokens):
                    return  # known already, and more
            self._entries = [
                other
                for other in self._entries
                if other.runtime is not runtime or other.efforts != efforts or not _begins(entry.tokens, other.tokens)
            ]
            self._entries.append(entry)
            while sum(one.cache.nbytes for one in self._entries) > self.max_bytes:
                del self._entries[0]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


def _shared(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """How many tokens two texts share from their beginnings on."""
    most = min(len(first), len(second))
    differing = np.flatnonzero(first[:most] != second[:most])
    return int(differing[0]) if len(differing) else most


def _begins(text: NDArray[np.int32], start: NDArray[np.int32]) -> bool:
    """Whether a text begins with another one."""
    return len(start) <= len(text) and _shared(text, start) == len(start)
