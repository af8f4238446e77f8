"""What a batch is doing: `BatchStatus`, and the `Rates` at which tokens come and answers end."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TOKENS_S, _ENDS_S = 5.0, 60.0  # seconds of work after which two thirds of what was seen are forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """What a batch is doing.

    Attributes:
        running: answers that grow, or whose prompts are being read.
        waiting: requests that wait for their turn.
        max_sequences: most that run.
        queue: most that wait; None for any number.
        cache_bytes: bound of the bytes of all keys and values.
        cache_bytes_used: allocated now, by answers and kept texts; what they share counts once.
        cache_bytes_reserved: that the running answers may come to, models that draft for them included.
        kept_texts: texts of earlier answers whose keys and values are kept.
        prompt_tokens: of all requests that ran so far.
        cached_prompt_tokens: how many of them were not read, because an earlier or a running answer had read them.
        generated_tokens: handed out so far.
        ended: answers that ended so far, for whatever reason.
        tok_per_s: tokens of all answers a second, lately; 0 while none runs.
    """

    running: int
    waiting: int
    max_sequences: int
    queue: int | None
    cache_bytes: int
    cache_bytes_used: int
    cache_bytes_reserved: int
    kept_texts: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    ended: int
    tok_per_s: float


class Rates:
    """How fast tokens come and answers end, over the seconds in which passes run. Old seconds weigh less and less.

    Attributes:
        tokens: all so far.
        ended: all answers so far.
    """

    def __init__(self) -> None:
        self.tokens = self.ended = 0
        self._tokens, self._tokens_s = 0.0, 0.0
        self._ends, self._ends_s = 0.0, 0.0

    def worked(self, seconds: float, tokens: int) -> None:
        """A step took `seconds` and brought `tokens`."""
        self.tokens += tokens
        stay = math.exp(-seconds / _TOKENS_S)
        self._tokens, self._tokens_s = self._tokens * stay + tokens, self._tokens_s * stay + seconds
        stay = math.exp(-seconds / _ENDS_S)
        self._ends, self._ends_s = self._ends * stay, self._ends_s * stay + seconds

    def end(self) -> None:
        """An answer has ended."""
        self.ended += 1
        self._ends += 1

    @property
    def tok_per_s(self) -> float:
        """Tokens a second lately."""
        return self._tokens / self._tokens_s if self._tokens_s else 0.0

    def seconds_to_next_end(self, tokens_left: int, running: int) -> float:
        """Seconds after which one of `running` answers is likely to end, of which the shortest has at most
        `tokens_left` tokens to go; at least 1."""
        times = []
        if self._ends >= 1.0:
            times.append(self._ends_s / self._ends)
        if self._tokens:
            times.append(tokens_left * running / self.tok_per_s)
        return max(1.0, min(times, default=1.0))
