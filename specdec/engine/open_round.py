"""A round under way: `OpenRound`. Its result is a `Round`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from specdec.drafters.base import Ask, Draft, Reply
from specdec.engine.policy import DraftPlan


@dataclass(slots=True)
class OpenRound:
    """A round under way.

    Attributes:
        plan: the policy's decision; None for a plain step.
        draft: the proposal, once it is made.
        plan_s: seconds spent planning.
        ready_s: seconds spent making a draft view that was left until now.
        draft_s: seconds spent drafting; for passes shared with other sequences, the share of this sequence's rows.
        others_s: the rest of those passes' time.
        steps: the drafter's passes, while it wants any.
        is_first: the pass read the end of the prompt as well, and no policy was asked.
        is_asked: a policy was asked, if there is one.
        is_quiet: it had said that there would be nothing to ask.
    """

    plan: DraftPlan | None = None
    draft: Draft = field(default_factory=Draft)
    plan_s: float = 0.0
    ready_s: float = 0.0
    draft_s: float = 0.0
    others_s: float = 0.0
    steps: Generator[Ask, Reply, Draft] | None = None
    is_first: bool = False
    is_asked: bool = True
    is_quiet: bool = False
