"""The policy protocol: what a policy is told, and what it may decide. No model code, no array library.

A round runs `plan`, then `next_step` after every drafted token but the last one planned, then `observe` once the
verifier has spoken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState:
    """What is known before a round.

    Attributes:
        round_index: rounds finished so far in this generation.
        position: absolute position of the first token that this round may emit.
        max_draft_tokens: most tokens that may be drafted now (budget and context room allow no more); may be 0.
        draft_len: draft length that the caller asked for.
        draft_effort: effort that the caller asked drafts to use (the mean, when it is a schedule).
        verify_effort: effort of verification (the mean, when it is a schedule).
    """

    round_index: int
    position: int
    max_draft_tokens: int
    draft_len: int
    draft_effort: float
    verify_effort: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """A policy's decision for one round.

    Attributes:
        num_draft_tokens: most tokens to draft, 0 for a plain step; the engine caps it at `max_draft_tokens`.
        effort: effort in (0, 1] of the first draft step.
    """

    num_draft_tokens: int
    effort: float


class Distribution(Protocol):
    """Shape of a draft step's next-token distribution at temperature 1. Computed when first asked for."""

    @property
    def entropy(self) -> float:
        """In nats."""
        ...

    @property
    def top_probability(self) -> float:
        """Largest probability."""
        ...

    @property
    def margin(self) -> float:
        """Largest minus second largest logit."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSignals:
    """What one draft step showed.

    Attributes:
        index: number of the drafted token within the round, from 0.
        position: its absolute position.
        effort: effort that the step used.
        context_length: tokens in the cache before the step.
        distribution: what the step's logits look like; a policy that never reads it costs nothing.
    """

    index: int
    position: int
    effort: float
    context_length: int
    distribution: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """What came of a round.

    Attributes:
        drafted: tokens proposed.
        accepted: how many of them the verifier kept.
        signals: one per drafted token, or none when the drafter has no distribution to show.
        draft_s: seconds spent drafting.
        verify_s: seconds spent in the verify pass.
    """

    drafted: int
    accepted: int
    signals: tuple[StepSignals, ...]
    draft_s: float
    verify_s: float


@runtime_checkable
class Policy(Protocol):
    """Chooses the draft length and each token's effort. Stateful; one object serves one generation."""

    def plan(self, state: RoundState) -> DraftPlan:
        """Decide the round before it starts."""
        ...

    def next_step(self, signals: StepSignals) -> float | None:
        """Effort in (0, 1] for the next draft step, or None to stop drafting now."""
        ...

    def observe(self, outcome: RoundOutcome) -> None:
        """Learn from the finished round."""
        ...
