"""What a drafter is: something that proposes the next tokens of a sequence, cheaply and possibly wrongly.

The engine verifies every proposal, so a drafter can never change the output, only its speed. Drafters know nothing of
text, stop conditions or statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from specdec.effort import EffortSchedule
from specdec.policies.base import DraftPlan, Policy, StepSignals
from specdec.runtimes.base import Cache, Runtime


@dataclass(frozen=True, slots=True)
class DrafterSetup:
    """What a drafter is built from, once per generation.

    Attributes:
        runtime: runs the model that is being sped up.
        view: draft view that the caller asked for.
        vocabulary: fingerprint of the tokenizer's vocabulary, or None for a model without one; a drafter that brings
            its own model compares it.
    """

    runtime: Runtime
    view: str
    vocabulary: str | None = None


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What a drafter works with in every round of one generation.

    Attributes:
        history: every token so far, prompt and answer; grows between rounds and is not the drafter's to change. The
            last one is pending: it is not in the cache yet.
        cache: the cache that drafting shares with verification. At the start of a round it holds `history` without its
            last token, all at verify quality. A drafter may append to it, and leaves the clearing up to the engine.
        efforts: effort schedule for a mean effort, in the proportions that the caller asked for.
        sample: `(logits (V,) float32, absolute position) -> token`. It draws with the very noise with which the
            verifier draws at that position, which is what makes the two agree (2408.07978, section 3). A drafter with
            logits must use it, and must not mix it with any other use of randomness.
        end_tokens: tokens after which nothing follows; drafting past one is wasted.
    """

    history: Sequence[int]
    cache: Cache
    efforts: Callable[[float], EffortSchedule]
    sample: Callable[[np.ndarray, int], int]
    end_tokens: frozenset[int] = frozenset()


@dataclass(slots=True)
class Draft:
    """A proposal for one round.

    Attributes:
        tokens: proposed tokens, first one at position `len(history)`; may be empty.
        signals: one per token, or none when the drafter has no distribution to show.
        bytes_read: bytes of weights and cache read for it.
    """

    tokens: list[int] = field(default_factory=list)
    signals: list[StepSignals] = field(default_factory=list)
    bytes_read: int = 0


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens. May be stateful; one object serves one generation."""

    @property
    def view(self) -> str | None:
        """Draft view that it reads weights from, or None when it reads none; for the statistics."""
        ...

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:
        """Propose at most `plan.num_draft_tokens` tokens, asking `policy.next_step` between one and the next.

        A drafter without a distribution to show does not ask.
        """
        ...
