"""A model whose answers, acceptance and costs are known beforehand, and a clock that only its passes move.

The token at position p is always `7 p + 3 mod 250`. A draft step gives the same one, but for positions that are a
multiple of four, where it is wrong. All costs are whole numbers of 1/1024 s, so that sums of them are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from fake_runtime import ByteTokenizer, FakeCache, fake_config

from specdec.model.architecture import ModelConfig
from specdec.model.loaded import Model
from specdec.progress import Count
from specdec.runtimes.base import Pass, Rows, RuntimeInfo, ViewInfo

PASS_S, ROW_S, STEP_S = 16 / 1024, 2 / 1024, 4 / 1024  # a pass over one row; each row more; a draft step at effort 1


@dataclass
class Clock:
    """Stands for `time.perf_counter`."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class ScriptedRuntime:
    """See the module.

    Attributes:
        clock: moved by every pass.
        stalls: factors on the time of exact passes, by their number; 1 where there is none.
        lie_at: position whose token is another one when several rows share the pass: a broken promise.
        fail_at: number of the pass that an interrupt meets.
    """

    clock: Clock
    stalls: dict[int, float] = field(default_factory=dict)
    lie_at: int | None = None
    fail_at: int | None = None
    passes: int = 0
    info = RuntimeInfo(name="scripted", auto_draft=("int4", 0.5))

    def __post_init__(self) -> None:
        self.config = fake_config()

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:
        return frozenset()

    def views(self) -> dict[str, ViewInfo]:
        return {"int4": ViewInfo(name="int4")}

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        pass

    def new_cache(self, capacity: int) -> FakeCache:
        return FakeCache(capacity)

    def cache_bytes(self, capacity: int) -> int:
        return 64 * (-(-capacity // 16) * 16)

    def forward(self, batch: Sequence[Rows], *, view: str = "exact", states: bool = False) -> list[Pass]:
        return [self._forward(rows, view) for rows in batch]

    def _forward(self, rows: Rows, view: str) -> Pass:
        tokens, cache = rows.tokens, rows.cache
        self.passes += 1
        if self.passes == self.fail_at:
            raise KeyboardInterrupt
        first = cache.length
        cache.entries.extend((b"", ()) for _ in tokens)
        exact_s = (PASS_S + ROW_S * (len(tokens) - 1)) * self.stalls.get(self.passes, 1.0)
        self.clock.now_s += exact_s if view == "exact" else STEP_S * rows.efforts.values[0]
        logits = np.zeros((len(tokens), self.config.vocab_size), np.float32)
        for row in range(len(tokens)):
            position = first + row + 1
            wrong = position % 4 == 0 if view != "exact" else position == self.lie_at and len(tokens) > 1
            logits[row, (7 * position + 3 + wrong) % 250] = 1.0
        return Pass(logits if rows.logits == "all" else logits[-1:], bytes_read=1)


@dataclass
class Expected:
    """What an answer with fixed drafts must give."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    drafted_by_place: list[int] = field(default_factory=list)
    checked_by_place: list[int] = field(default_factory=list)
    accepted_by_place: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.draft_s + self.verify_s


def expect(prompt_tokens: int, max_tokens: int, length: int, effort: float) -> Expected:
    """Play an answer of `max_tokens` by hand: `length` tokens drafted a round (0: plain decoding)."""
    found = Expected(*[0] * 3, 0.0, 0.0, *([0] * length for _ in range(3)))
    position, end = prompt_tokens, prompt_tokens + max_tokens
    while position < end:
        drafted = min(length, end - position - 1)
        kept = next((j for j in range(drafted) if (position + j) % 4 == 0), drafted)
        found.rounds += 1
        found.drafted += drafted
        found.accepted += kept
        found.draft_s += drafted * STEP_S * effort
        found.verify_s += PASS_S + drafted * ROW_S
        for place in range(drafted):
            found.drafted_by_place[place] += 1
            found.checked_by_place[place] += place <= kept
            found.accepted_by_place[place] += place < kept
        position += kept + 1
    return found


def scripted_model(clock: Clock | None = None, **options: object) -> Model:
    """The model, with the byte tokenizer and no end token."""
    return Model(ScriptedRuntime(clock or Clock(), **options), ByteTokenizer(eos=frozenset()))  # type: ignore[arg-type]
