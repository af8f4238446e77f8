"""Reports to policies: `outcome_of` for a finished round, `outcome_of_turns` for rounds that the runtime ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specdec.drafters.base import GRAMMAR
from specdec.engine.policy import DraftPlan, RoundOutcome
from specdec.engine.round import Round
from specdec.runtimes.base import Turn


class OthersTimes(NamedTuple):
    """Seconds of a round that belong to other sequences or to preparation.

    Attributes:
        draft_s: share of other sequences in the drafter's passes.
        verify_s: share of other sequences in the verify pass.
        ready_s: seconds spent making a draft view that was left until now.
    """

    draft_s: float
    verify_s: float
    ready_s: float


def outcome_of(done: Round, others: OthersTimes, *, rows_beside: int, ahead: int) -> RoundOutcome:
    """A round in the times of whole passes. Tokens forced by a grammar do not count as drafted: for the policy they are
    rows of others. `ahead`: plain steps that its pass went ahead for."""
    draft, forced = done.draft, done.draft.forced
    draft_s = done.draft_s + others.draft_s
    forced_kept = sum(draft.sources[index] == GRAMMAR for index in done.kept) if forced else 0
    return RoundOutcome(
        drafted=len(draft.tokens) - forced,
        accepted=len(done.kept) - forced_kept,
        signals=tuple(draft.signals),
        drafter=None if done.plan is None else done.plan.drafter,
        view=None if done.plan is None else done.plan.view,
        context_length=done.position - 1,
        draft_s=draft_s,
        verify_s=done.verify_s + others.verify_s,
        round_s=done.round_s - others.ready_s + others.draft_s + others.verify_s,
        rows_beside=rows_beside + forced,
        draft_share=done.draft_s / draft_s if others.draft_s > 0 and done.draft_s > 0 else 1.0,
        ahead=ahead,
    )


def outcome_of_turns(
    turns: Sequence[Turn], plan: DraftPlan, position: int, *, verify_s: float, round_s: float
) -> RoundOutcome:
    """Outcome of all turns of a pass that drafted by itself under a plan; the first emits tokens from `position` on."""
    kept = tuple(len(turn.kept) for turn in turns)
    return RoundOutcome(
        drafted=sum(len(turn.tokens) for turn in turns),
        accepted=sum(kept),
        signals=(),
        drafter=plan.drafter,
        view=None,
        context_length=position - 1,
        draft_s=0.0,
        verify_s=verify_s,
        round_s=round_s,
        turns=kept,
    )
