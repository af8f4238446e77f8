"""Drafting by running a model, token after token: `ModelSteps`.

Which model, which weights and which layers is the business of the drafters that use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specdec.checks import check_finite
from specdec.drafters.base import Ask, Draft, DraftContext, Drafting
from specdec.drafters.signals import LogitDistribution
from specdec.engine.policy import Distribution, DraftPlan, Policy, StepSignals
from specdec.model.effort import Efforts
from specdec.runtimes.base import Cache, DraftHead, Logits, Pass, Rows, Runtime, Window


class Wish(NamedTuple):
    """What a step wants of its pass.

    Attributes:
        tokens: rows.
        effort: of the rows.
        head: tokens to score; None for all.
        shown: see `Rows.logits`.
        ahead: see `Rows.ahead`.
        ends: see `Rows.ends`.
        least_margin: see `Rows.least_margin`.
    """

    tokens: Sequence[int]
    effort: float
    head: DraftHead | None
    shown: Logits
    ahead: int = 0
    ends: frozenset[int] = frozenset()
    least_margin: float = 0.0

    def rows(self, cache: Cache, efforts: Efforts, *, layers: int | None = None, window: Window | None = None) -> Rows:
        """The rows of the pass."""
        return Rows(
            cache, self.tokens, efforts, None, layers, self.shown, self.head, self.ahead, self.ends,
            window=window, least_margin=self.least_margin,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSteps:
    """Draft steps of one model through one view.

    Attributes:
        name: of the drafter.
        view: draft view.
        runtime: runs the model.
        cache: holds the history without its last token before the first step; grows with every step.
        ask: a wish to the pass that appends its tokens to `cache`.
        note: told of tokens that such a pass has appended beyond those.
        fixed_effort: effort of every step whatever the policy says; None follows the policy.
        vocab_size: logits that count; None for all.
        head: tokens to score; None for all.
    """

    name: str
    view: str
    cache: Cache
    ask: Callable[[Wish], Ask]
    note: Callable[[list[int]], None] | None = None
    runtime: Runtime
    fixed_effort: float | None = None
    vocab_size: int | None = None
    head: DraftHead | None = None

    def go_on(self, draft: Draft, effort: float, plan: DraftPlan, context: DraftContext, policy: Policy) -> Drafting:
        """Add tokens to `draft`, whose own are in the cache but the last one, until the plan is full, the policy stops,
        or an end token comes up. `effort` is that of the first step. What a grammar leaves no choice about comes
        without a step, and beyond the plan."""
        if self._takes_choices(context):
            return (yield from self._go_on_by_choices(draft, effort, plan, context, policy))
        pending, rules = [draft.tokens[-1] if draft.tokens else context.history[-1]], context.rules
        own = len(draft.tokens)
        while own < plan.num_draft_tokens:
            if rules is not None:
                forced = rules.forced(draft.tokens)
                draft.add_forced(forced)
                pending += forced
                if rules.room(draft.tokens) < 1 or self.cache.length + len(pending) > self.cache.capacity:
                    break
            context_length = self.cache.length
            effort = self.fixed_effort or effort
            wish = Wish(pending, effort, self.head, "all" if len(pending) == 1 else "last")
            reply = yield self.ask(wish)
            start_s, pass_s = time.perf_counter(), reply.pass_s
            draft.bytes_read += reply.result.bytes_read
            drawn = self._drawn(reply.result, draft, context)
            if drawn is None and self.head is not None:
                # The caller's rules allow none of the tokens that were scored: the step again, with all of them.
                self.cache.trim(context_length)
                reply = yield self.ask(wish._replace(head=None))
                start_s, pass_s = time.perf_counter(), pass_s + time.perf_counter() - start_s
                draft.bytes_read += reply.result.bytes_read
                drawn = self._drawn(reply.result, draft, context)
            if drawn is None:
                break
            distribution, token = drawn
            seconds = pass_s + time.perf_counter() - start_s
            signals = self._add(draft, token, distribution, effort, context_length, seconds, context, own)
            own, pending = own + 1, [token]
            next_effort = self._next(signals, plan, context, policy, token)
            if next_effort is None:
                break
            effort = next_effort
        return draft

    def _go_on_by_choices(
        self, draft: Draft, effort: float, plan: DraftPlan, context: DraftContext, policy: Policy
    ) -> Drafting:
        """`go_on` where tokens are the runtime's choices: it drafts the first ones at once where the plan says so."""
        own, at_once = len(draft.tokens), 1 + min(plan.at_once - 1, self.runtime.info.drafts_ahead)
        pending = draft.tokens[-1] if draft.tokens else context.history[-1]
        next_effort: float | None = effort
        while next_effort is not None and own < plan.num_draft_tokens:
            context_length, effort = self.cache.length, self.fixed_effort or next_effort
            ahead = min(at_once, plan.num_draft_tokens - own) - 1
            wish = Wish([pending], effort, self.head, "choices")
            if ahead:
                wish = wish._replace(ahead=ahead, ends=context.end_tokens, least_margin=plan.least_margin)
            reply = yield self.ask(wish)
            choices = reply.result.choices
            assert choices
            draft.bytes_read += reply.result.bytes_read
            at_once = 1
            if self.note is not None:
                self.note([choice.token for choice in choices[:-1]])
            seconds = reply.pass_s / len(choices)
            for place, choice in enumerate(choices):
                check_finite(choice.highest, len(context.history) + own)
                pending = choice.token
                signals = self._add(draft, pending, choice, effort, context_length + place, seconds, context, own)
                own += 1
                next_effort = self._next(signals, plan, context, policy, pending)
                if next_effort is None:
                    break
        return draft

    def _takes_choices(self, context: DraftContext) -> bool:
        """Whether a step's token is the one that the runtime chooses, so that no logits are needed."""
        return (
            self.runtime.info.chooses
            and context.is_greedy
            and context.rules is None
            and self.vocab_size in (None, self.runtime.config.vocab_size)
        )

    def _drawn(self, result: Pass, draft: Draft, context: DraftContext) -> tuple[Distribution, int] | None:
        """A token, and the shape of what it was drawn from; None where the caller's rules let none follow."""
        position = len(context.history) + len(draft.tokens)
        logits = result.logits[-1]
        if self.vocab_size is not None:
            logits = logits[: self.vocab_size]
        if context.rules is None:
            token = context.sample(logits, position)
        else:
            shaped = context.rules.shape(logits, draft.tokens)
            if shaped is None:
                return None
            logits, token = shaped, context.rules.draw(shaped, position)
        return LogitDistribution(logits, token if context.is_greedy else None), token

    def _add(
        self,
        draft: Draft,
        token: int,
        distribution: Distribution,
        effort: float,
        context_length: int,
        seconds: float,
        context: DraftContext,
        index: int,
    ) -> StepSignals:
        signals = StepSignals(
            index=index,
            position=len(context.history) + len(draft.tokens),
            effort=effort,
            context_length=context_length,
            drafter=self.name,
            view=self.view,
            seconds=seconds,
            distribution=distribution,
        )
        draft.tokens.append(token)
        draft.sources.append(self.name)
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
