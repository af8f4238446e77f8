"""The main drafter: the model itself, at low effort, on the shared cache."""

from __future__ import annotations

from specdec.drafters.base import Draft, DraftContext, DrafterSetup
from specdec.drafters.signals import LogitDistribution
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.policies.base import DraftPlan, Policy, StepSignals


class EffortDrafter:
    """Runs the model one token at a time through a draft view, at the effort that the policy chooses for each token.

    Its keys and values go into the shared cache after those of the verified history, so every draft step sees that
    history at verify quality and there is no second cache to keep in step.

    Raises:
        InvalidArgumentError: `argument` is not empty.
        UnknownNameError: the runtime has no such draft view.
    """

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        if argument:
            raise InvalidArgumentError(
                f"drafter 'effort' takes no argument, not {argument!r}: see the policy's parameters"
            )
        self.runtime = setup.runtime
        self._view = setup.runtime.auto_draft[0] if setup.view == "auto" else setup.view
        views = ["exact", *setup.runtime.views]
        if self._view not in views:
            raise UnknownNameError("draft view", setup.view, ["auto", *views])
        self.runtime.prepare_view(self._view)

    @property
    def view(self) -> str:
        """Draft view that it reads weights from."""
        return self._view

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:
        """Propose tokens until the plan is full, the policy stops, or an end token comes up."""
        draft = Draft()
        pending, effort = context.history[-1], plan.effort
        for index in range(plan.num_draft_tokens):
            context_length = context.cache.length
            step = self.runtime.forward([pending], context.cache, effort=context.efforts(effort), view=self._view)
            pending = context.sample(step.logits[0], context_length + 1)
            draft.tokens.append(pending)
            draft.bytes_read += step.bytes_read
            signals = StepSignals(
                index=index,
                position=context_length + 1,
                effort=effort,
                context_length=context_length,
                distribution=LogitDistribution(step.logits[0]),
            )
            draft.signals.append(signals)
            if pending in context.end_tokens or index + 1 == plan.num_draft_tokens:
                break
            next_effort = policy.next_step(signals)
            if next_effort is None:
                break
            effort = next_effort
        return draft
