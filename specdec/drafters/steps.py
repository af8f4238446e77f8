"""Drafting by running a model: token after token, and checking a cheaper proposal in one pass. `ModelSteps`.

Which model, which weights and which layers is the business of the drafters that use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specdec.drafters.base import Draft, DraftContext
from specdec.drafters.signals import LogitDistribution
from specdec.engine.policy import DraftPlan, Policy, StepSignals
from specdec.runtimes.base import Cache, Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSteps:
    """Draft steps of one model through one view.

    Attributes:
        name: of the drafter.
        view: draft view.
        cache: holds the history without its last token before the first step; grows with every step.
        forward: `(tokens, effort) -> logits (M, V)`, appending to `cache`.
        fixed_effort: effort of every step whatever the policy says; None follows the policy.
    """

    name: str
    view: str
    cache: Cache
    forward: Callable[[Sequence[int], float], Pass]
    fixed_effort: float | None = None

    def go_on(self, draft: Draft, effort: float, plan: DraftPlan, context: DraftContext, policy: Policy) -> Draft:
        """Add tokens to `draft`, whose own are in the cache but the last one, until the plan is full, the policy stops,
        or an end token comes up. `effort` is that of the first step."""
        pending = draft.tokens[-1] if draft.tokens else context.history[-1]
        while len(draft.tokens) < plan.num_draft_tokens:
            start_s, context_length = time.perf_counter(), self.cache.length
            effort = self.fixed_effort or effort
            step = self.forward([pending], effort)
            pending = context.sample(step.logits[0], len(context.history) + len(draft.tokens))
            draft.bytes_read += step.bytes_read
            seconds = time.perf_counter() - start_s
            signals = self._add(draft, pending, self.name, step.logits[0], effort, context_length, seconds, context)
            next_effort = self._next(signals, plan, context, policy, pending)
            if next_effort is None:
                break
            effort = next_effort
        return draft

    def check(self, proposed: Draft, effort: float, plan: DraftPlan, context: DraftContext, policy: Policy) -> Draft:
        """What the model makes of `proposed`, from one pass over its tokens: those that it would draft itself, then its
        own, by further steps where the plan has room.

        The result is what `go_on` would have drafted alone, in fewer passes.
        """
        start_s, held = time.perf_counter(), self.cache.length
        effort = self.fixed_effort or effort
        rows = [context.history[-1], *proposed.tokens][: plan.num_draft_tokens]
        step = self.forward(rows, effort)
        seconds = (time.perf_counter() - start_s) / len(rows)
        next_effort: float | None = effort
        draft = Draft(bytes_read=proposed.bytes_read + step.bytes_read)
        for index, logits in enumerate(step.logits):
            token = context.sample(logits, len(context.history) + index)
            agrees = index < len(proposed.tokens) and token == proposed.tokens[index]
            source = proposed.sources[index] if agrees else self.name
            signals = self._add(draft, token, source, logits, effort, held + index, seconds, context)
            next_effort = self._next(signals, plan, context, policy, token)
            if next_effort is None:
                return draft
            if not agrees:
                break
        self.cache.trim(held + len(draft.tokens))  # the pending token and all drafted ones but the last
        assert next_effort is not None  # the loop returns otherwise
        return self.go_on(draft, next_effort, plan, context, policy)

    def _add(
        self,
        draft: Draft,
        token: int,
        source: str,
        logits: np.ndarray,
        effort: float,
        context_length: int,
        seconds: float,
        context: DraftContext,
    ) -> StepSignals:
        signals = StepSignals(
            index=len(draft.tokens),
            position=len(context.history) + len(draft.tokens),
            effort=effort,
            context_length=context_length,
            drafter=self.name,
            view=self.view,
            seconds=seconds,
            distribution=LogitDistribution(logits, token if context.is_greedy else None),
        )
        draft.tokens.append(token)
        draft.sources.append(source)
        draft.signals.append(signals)
        return signals

    def _next(
        self, signals: StepSignals, plan: DraftPlan, context: DraftContext, policy: Policy, token: int
    ) -> float | None:
        """Effort of the next step, or None when there is to be none."""
        if token in context.end_tokens or signals.index + 1 == plan.num_draft_tokens:
            return None
        effort: float | None = policy.next_step(signals)
        return effort
