"""The policy protocol: what a policy is told, and what it may decide. No model code, no array library.

A round runs `plan`, then `next_step` after every drafted token, then `observe` once the verifier has spoken.
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
        draft_effort: effort that the caller asked drafts to use.
        verify_effort: effort of verification.
    """

    round_index: int
    position: int
    max_draft_tokens: int
    draft_effort: float
    verify_effort: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """A policy's decision for one round: up to `num_draft_tokens` drafts (0 means a plain step), first at `effort`."""

    num_draft_tokens: int
    effort: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSignals:
    """What one draft step showed.

    Attributes:
        index: number of the drafted token within the round, from 0.
        position: its absolute position.
        entropy: of the draft distribution at temperature 1, in nats.
        top_probability: largest probability of that distribution.
        margin: largest minus second largest logit.
        effort: effort that the step used.
        context_length: tokens in the cache before the step.
    """

    index: int
    position: int
    entropy: float
    top_probability: float
    margin: float
    effort: float
    context_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """What came of a round: drafted and accepted counts, per-step signals, and the times that it took in seconds."""

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
