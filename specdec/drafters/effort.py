"""The main drafter: the model itself, at low effort, on the shared cache; all of its layers, or the first few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from specdec.drafters.arguments import whole_number
from specdec.drafters.base import Ask, Draft, DraftContext, DrafterSetup, Drafting
from specdec.drafters.steps import ModelSteps
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError
from specdec.progress import Progress
from specdec.runtimes.base import EXACT, Logits, Rows, Runtime, missing_view


class EffortDrafter:
    """Runs the model one token at a time through a draft view, at the effort that the policy chooses for each token.

    Its keys and values go into the shared cache after those of the verified history, so every draft step sees that
    history at verify quality and there is no second cache to keep in step.

    Raises:
        InvalidArgumentError: `argument` is not empty.
        UnknownNameError: the runtime has no such draft view.
    """

    name = "effort"
    takes_effort = True
    layers: int | None = None

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        if argument:
            raise InvalidArgumentError(
                f"drafter 'effort' takes no argument, not {argument!r}: see the policy's parameters"
            )
        self._begin(setup)

    def _begin(self, setup: DrafterSetup) -> None:
        self.runtime = setup.runtime
        self.views = draft_views(setup.runtime, setup.view, setup.progress)

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Drafting:
        """Propose tokens until the plan is full, the policy stops, or an end token comes up."""
        view = plan.view or self.views[0]

        def ask(tokens: Sequence[int], effort: float) -> Ask:
            rows = Rows(context.cache, tokens, context.efforts(effort), None, self.layers, shown_rows(tokens))
            return Ask(self.runtime, rows, view)

        steps = ModelSteps(name=self.name, view=view, cache=context.cache, ask=ask)
        return steps.go_on(Draft(), plan.effort, plan, context, policy)


def shown_rows(tokens: Sequence[int]) -> Logits:
    """Rows whose logits a draft step needs: the last one's."""
    return "all" if len(tokens) == 1 else "last"


class EarlyExitDrafter(EffortDrafter):
    """Runs only the first layers, then the final norm and the logits layer.

    It leaves keys and values of those layers in the cache, and garbage in the others; every later pass over these
    positions writes all layers again. Models that were not trained for it guess badly from their middle layers: with
    them the drafter is for comparison. Sources: LayerSkip (Elhoushi et al. 2404.16710, section 4.3), Draft & Verify
    (Zhang et al. 2309.08168).

    Args:
        argument: number of layers, at least 1 and fewer than the model has.

    Raises:
        InvalidArgumentError: `argument` is something else.
        UnknownNameError: the runtime has no such draft view.
    """

    name = "early-exit"

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        most = setup.runtime.config.num_layers - 1
        self.layers = whole_number("early-exit", "number of layers", argument, low=1, high=most)
        self._begin(setup)


def draft_views(runtime: Runtime, asked: str, progress: Progress | None = None) -> tuple[str, ...]:
    """The draft views that were asked for, made ready: one, several with commas between, or "auto" for the one that is
    fastest on the runtime. `progress` reports those that are built.

    Raises:
        UnknownNameError: the runtime has no such view.
        InvalidArgumentError: one is asked for twice.
    """
    known = [EXACT, *runtime.views()]
    views = tuple(runtime.info.auto_draft[0] if view == "auto" else view for view in asked.replace(" ", "").split(","))
    for view in views:
        if view not in known:
            raise missing_view(view, ["auto", *known], kind="draft view")
        if views.count(view) > 1:
            raise InvalidArgumentError(f"draft view {view!r} is asked for twice")
        runtime.prepare(view, progress=None if progress is None else partial(progress, f"building draft view {view}"))
    return views
