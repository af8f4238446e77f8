"""Keys and values of earlier texts, for prompts that begin like them: `PromptCache`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from specdec.checks import is_integral
from specdec.engine.texts import Text, Texts, as_tokens
from specdec.errors import InvalidArgumentError
from specdec.model.effort import Efforts
from specdec.runtimes.base import Cache, Runtime

DEFAULT_BYTES = 1 << 30


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
        if not is_integral(max_bytes) or max_bytes < 1:
            raise InvalidArgumentError(f"max_bytes must be a positive whole number of bytes, not {max_bytes!r}")
        self.max_bytes = int(max_bytes)
        self._texts = Texts()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes kept now; what texts share counts in each."""
        with self._lock:
            return self._bytes()

    def __len__(self) -> int:
        """Texts kept."""
        return len(self._texts)

    def take(self, runtime: Runtime, prompt: Sequence[int], *, efforts: Efforts, capacity: int) -> Cache | None:
        """A cache that holds as much of `prompt` as is known; None when that is nothing.

        Args:
            runtime: of the model.
            prompt: token ids; its last one is never in the cache.
            efforts: of verification.
            capacity: fewest tokens that have to fit.
        """
        with self._lock:
            best, length = self._texts.find((runtime, efforts), as_tokens(prompt[:-1]))
            if best is None:
                return None
            self._texts.use(best)
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
        text = Text((runtime, efforts), as_tokens(tokens[: cache.length]), cache)
        with self._lock:
            self._texts.add(text)
            while self._bytes() > self.max_bytes:
                self._texts.drop_oldest()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._texts.clear()

    def _bytes(self) -> int:
        return sum(text.cache.nbytes for text in self._texts)
