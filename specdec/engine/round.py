"""The round: draft cheaply, verify in one pass, keep what plain decoding would have produced. All tokens, no text.

What this file promises: whatever the policy and the drafter propose, the tokens are those of one-by-one decoding at the
verify effort. It rests on three things. The verify pass reads the exact view at the verify effort for every token that
stays in the cache; a row of it is computed from its own token and history alone, however many rows share the pass
(`runtimes.base`); and a token is drawn from its row by a pure function of logits, seed and position (`sampler`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specdec.drafters.base import Draft, DraftContext, Drafter, Foreteller
from specdec.drafters.signals import LogitDistribution
from specdec.engine.accept import accept
from specdec.engine.origin import BONUS, Origin
from specdec.engine.policy import DraftOption, DraftPlan, Policy, RoundOutcome, RoundState
from specdec.engine.policy_guard import GuardedPolicy
from specdec.engine.sampler import Sampler
from specdec.errors import SpecdecError
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import Cache, Runtime, forward_one

PREFILL_CHUNK = 512  # tokens a pass over the prompt: bounds its memory, and how long an interrupt waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A finished round.

    Attributes:
        position: absolute position of the first token that it emitted.
        plan: what the policy decided; None after a plain step.
        draft: what was proposed.
        accepted: leading proposed tokens that the verifier kept.
        bonus_token: the verifier's own token after them.
        trusted: one per drafted token, whether it was to be kept without a check; empty when all were checked.
        draft_s: seconds spent drafting.
        verify_s: seconds spent in the verify pass.
        verify_bytes_read: bytes that the verify pass had to read.
    """

    position: int
    plan: DraftPlan | None
    draft: Draft
    accepted: int
    bonus_token: int
    draft_s: float
    verify_s: float
    verify_bytes_read: int
    trusted: list[bool] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """The accepted tokens and the bonus token."""
        return [*self.draft.tokens[: self.accepted], self.bonus_token]

    @property
    def origins(self) -> list[Origin]:
        """Who produced each of `tokens`."""
        draft, origins = self.draft, []
        for index in range(self.accepted):
            effort = draft.signals[index].effort if index < len(draft.signals) else None
            source = draft.sources[index] if index < len(draft.sources) else "draft"
            origins.append(Origin(source, effort, is_trusted=bool(self.trusted) and self.trusted[index]))
        return [*origins, BONUS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Who proposes tokens, and who decides how many at what effort.

    Attributes:
        drafters: who may propose, by name; the first is the default.
        policy: decides; its answers are trusted here, `policy_guard` checks them.
        context: what the drafter works with; its history and cache are the engine's own.
        draft_len: draft length that the caller asked for.
        draft_effort: mean effort that the caller asked for.
        verify_effort: mean effort of verification.
        temperature: of the sampling.
        is_effort_asked: the caller named the draft effort.
        trust: entropy in nats under which a draft token is kept without a check; None checks all.
        options: the drafters with the views that the policy may choose from, the default first.
        foretellers: of the drafters, those that can tell beforehand what they have found, by name.
    """

    drafters: Mapping[str, Drafter]
    options: tuple[DraftOption, ...]
    policy: GuardedPolicy
    context: DraftContext
    draft_len: int
    draft_effort: float
    verify_effort: float
    temperature: float = 0.0
    is_effort_asked: bool = True
    trust: float | None = None
    foretellers: Mapping[str, Foreteller] = field(init=False)

    def __post_init__(self) -> None:
        told = {name: drafter for name, drafter in self.drafters.items() if isinstance(drafter, Foreteller)}
        object.__setattr__(self, "foretellers", told)

    def matches(self) -> dict[str, int]:
        """What the drafters that can tell beforehand have found, by name."""
        return {name: drafter.match_length(self.context) for name, drafter in self.foretellers.items()}

    def trusted(self, draft: Draft) -> list[bool]:
        """For each drafted token whether it is kept without a check; empty when all are checked.

        A token whose drafter shows no distribution is always checked.
        """
        if self.trust is None:
            return []
        entropies = [signals.distribution.entropy for signals in draft.signals]
        return [index < len(entropies) and entropies[index] < self.trust for index in range(len(draft.tokens))]


class Engine:
    """The state of one generation, in tokens: between rounds the cache holds every token but the last one, `pending`.

    Args:
        runtime: runs the model.
        prompt: token ids, at least one.
        limit: most tokens in all, prompt included; above `len(prompt)`, at most the model's context.
        effort: verify effort.
        sampler: draws every token, for drafter and verifier alike.
        cache: of the runtime, with room for `limit` tokens, holding a beginning of the prompt already; None begins with
            an empty one.

    Attributes:
        tokens: prompt and answer so far.
        cache: keys and values, at verify quality between rounds.
        speculation: None decodes one token a round.
    """

    def __init__(
        self,
        runtime: Runtime,
        prompt: Sequence[int],
        *,
        limit: int,
        effort: EffortSchedule,
        sampler: Sampler,
        cache: Cache | None = None,
    ) -> None:
        self.runtime, self.effort, self.sampler = runtime, effort, sampler
        self.tokens, self.limit = list(prompt), limit
        self.cache = runtime.new_cache(limit) if cache is None else cache
        self.speculation: Speculation | None = None
        self.rounds = 0
        self._last_distribution: LogitDistribution | None = None

    def prefill(self) -> int:
        """Read the prompt up to its last token, which is the first to be pending; returns the bytes read.

        The same passes with and without speculation.
        """
        bytes_read = 0
        while rest := self.tokens[self.cache.length : -1]:
            step = forward_one(self.runtime, rest[:PREFILL_CHUNK], self.cache, effort=self.effort, logits="last")
            bytes_read += step.bytes_read
        return bytes_read

    def step(self) -> Round:
        """One round. It happens as a whole or, when anything raises, not at all."""
        held = self.cache.length
        try:
            done = self._round()
            self.tokens.extend(done.tokens)
        except BaseException:
            self._rewind(held)
            raise
        self.rounds += 1
        return done

    def _round(self) -> Round:
        position = len(self.tokens)  # of the first token to emit; the pending token sits at position - 1
        began_s = time.perf_counter()
        plan = self._plan(position)
        start_s = time.perf_counter()
        draft = self._draft(plan)
        # Keys and values that the drafter left are of draft quality: the verify pass writes these positions anew.
        self.cache.trim(position - 1)

        drafted_s = time.perf_counter()
        verify = forward_one(self.runtime, [self.tokens[-1], *draft.tokens], self.cache, effort=self.effort)
        verified_s = time.perf_counter()

        # Row j of the verify pass saw the pending token and drafts before j. The verifier draws its own token from
        # each row; drafts are kept as long as they equal it, and its first different (or additional) token comes last.
        # A trusted token is in the verify pass as well, so that its keys and values are those of the verify effort.
        trusted = self.speculation.trusted(draft) if self.speculation is not None else []
        verdict = accept(draft.tokens, verify.logits, self.sampler, position=position, trusted=trusted)
        self.cache.trim(position + verdict.accepted)

        done = Round(
            position=position,
            plan=plan,
            draft=draft,
            accepted=verdict.accepted,
            bonus_token=verdict.bonus_token,
            draft_s=drafted_s - start_s if plan else 0.0,
            verify_s=verified_s - drafted_s,
            verify_bytes_read=verify.bytes_read,
            trusted=trusted,
        )
        if self.speculation is not None:
            top = verdict.bonus_token if self.speculation.context.is_greedy else None
            self._last_distribution = LogitDistribution(verify.logits[verdict.accepted], top)
            self._report(done, self.speculation.policy, round_s=time.perf_counter() - began_s)
        return done

    def _plan(self, position: int) -> DraftPlan | None:
        """The policy's plan for this round; None for a plain step."""
        if (speculation := self.speculation) is None:
            return None
        state = RoundState(
            round_index=self.rounds,
            position=position,
            # A round emits one token more than it accepts, so the last one before the limit needs no draft.
            max_draft_tokens=self.limit - position - 1,
            draft_len=speculation.draft_len,
            draft_effort=speculation.draft_effort,
            verify_effort=speculation.verify_effort,
            options=speculation.options,
            temperature=speculation.temperature,
            is_effort_asked=speculation.is_effort_asked,
            matches=speculation.matches(),
            distribution=self._last_distribution,
        )
        plan = speculation.policy.plan(state)
        return plan if plan.num_draft_tokens else None

    def _draft(self, plan: DraftPlan | None) -> Draft:
        """The drafter's proposal under a plan."""
        if plan is None or (speculation := self.speculation) is None:
            return Draft()
        name = plan.drafter or speculation.options[0].drafter
        draft = speculation.drafters[name].draft(plan, speculation.context, policy=speculation.policy)
        drafted = len(draft.tokens)
        if drafted > plan.num_draft_tokens:
            raise SpecdecError(f"drafter {name!r} drafted {drafted} tokens where {plan.num_draft_tokens} were allowed")
        draft.sources = draft.sources or [name] * drafted
        return draft

    def _report(self, done: Round, policy: Policy, *, round_s: float) -> None:
        policy.observe(
            RoundOutcome(
                drafted=len(done.draft.tokens),
                accepted=done.accepted,
                signals=tuple(done.draft.signals),
                drafter=None if done.plan is None else done.plan.drafter,
                view=None if done.plan is None else done.plan.view,
                context_length=done.position - 1,
                draft_s=done.draft_s,
                verify_s=done.verify_s,
                round_s=round_s,
            )
        )

    def _rewind(self, length: int) -> None:
        """Back to `length` tokens in the cache and one pending."""
        if self.cache.length > length:
            self.cache.trim(length)
        del self.tokens[length + 1 :]
