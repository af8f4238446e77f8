"""What the last prompt left in the cache, for a prompt that begins like it: `PromptCache`."""

from __future__ import annotations

from collections.abc import Sequence

from specdec.engine.round import PREFILL_CHUNK, Engine
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import Cache


class PromptCache:
    """Keys and values of the prompt of the last generation that has ended.

    A prompt that equals it, or shares whole chunks of `PREFILL_CHUNK` tokens with it, is not read again as far as they
    agree. What is left to read is then read in the very passes that it would have been read in, so the answer is the
    same bit for bit on every runtime. It holds one prompt, and serves one generation at a time: a second one that
    begins meanwhile reads its prompt itself.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._effort: EffortSchedule | None = None
        self._cache: Cache | None = None

    def take(self, prompt: Sequence[int], *, effort: EffortSchedule, capacity: int) -> Cache | None:
        """The cache, holding as much of `prompt` as it can serve; None when that is nothing.

        Args:
            prompt: token ids; its last one is never in the cache.
            effort: verify effort.
            capacity: fewest tokens that have to fit.
        """
        cache = self._cache
        if cache is None or effort != self._effort or cache.capacity < capacity:
            return None
        read = list(prompt[:-1])
        length = len(read) if read == self._tokens else _shared(read, self._tokens) // PREFILL_CHUNK * PREFILL_CHUNK
        if not length:
            return None
        self._cache = None
        cache.trim(length)
        return cache

    def keep(self, engine: Engine, num_prompt_tokens: int) -> None:
        """Take over the cache of an engine that will not go on, unless it was ended before it had read its prompt."""
        length = num_prompt_tokens - 1
        if not 0 < length <= engine.cache.length:
            return
        engine.cache.trim(length)
        self._tokens, self._effort, self._cache = engine.tokens[:length], engine.effort, engine.cache


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share from their beginnings on."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
