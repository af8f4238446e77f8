"""Counts and times of a batch, by mlx-lm's names."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import mlx.core as mx

__all__ = ["BatchStats"]


def peak_memory_gb() -> float:
    """10^9 bytes of memory that this process has used at most: its own, or MLX's, whichever is more."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return float(max(own, mx.get_peak_memory())) / 1e9


@dataclass(kw_only=True)
class BatchStats:
    """What `batch_generate` did.

    Attributes:
        prompt_tokens: of all prompts.
        prompt_time: seconds of reading them.
        generation_tokens: of all answers, the tokens that end them included.
        generation_steps: verify passes; speculation makes them fewer than the tokens of the longest answer.
        decode_time: seconds of drafting and verifying.
        wall_time: seconds in all.
        peak_memory: 10^9 bytes.
    """

    prompt_tokens: int = 0
    prompt_time: float = 0.0
    generation_tokens: int = 0
    generation_steps: int = 0
    decode_time: float = 0.0
    wall_time: float = 0.0
    peak_memory: float = 0.0

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prompt_time if self.prompt_time > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens a second of drafting and verifying."""
        return self.generation_tokens / self.decode_time if self.decode_time > 0 else 0.0

    @property
    def generation_time(self) -> float:
        """Seconds without those of the prompts."""
        return max(0.0, self.wall_time - self.prompt_time)

    @property
    def generation_tps(self) -> float:
        """Tokens a second without the time of the prompts."""
        return self.generation_tokens / self.generation_time if self.generation_time > 0 else 0.0

    @property
    def overhead_time(self) -> float:
        """Seconds of neither prompts nor answers."""
        return max(0.0, self.wall_time - self.prompt_time - self.decode_time)
