"""The main drafter: the model itself, at low effort, on the shared cache; all of its layers, or the first few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from specdec.drafters.arguments import read_options, whole_number
from specdec.drafters.base import Ask, Draft, DraftContext, DrafterSetup, Drafting
from specdec.drafters.head import ARGUMENT as HEAD
from specdec.drafters.head import Head
from specdec.drafters.steps import ModelSteps, Wish
from specdec.drafters.window import ARGUMENT as WINDOW
from specdec.drafters.window import DraftWindow
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError
from specdec.progress import Progress
from specdec.runtimes.base import EXACT, Runtime, missing_view


class EffortDrafter:
    """Runs the model one token at a time through a draft view, at the effort that the policy chooses for each token.

    Its keys and values go into the shared cache after those of the verified history, so every draft step sees that
    history at verify quality and there is no second cache to keep in step.

    Args:
        argument: empty, or `head=N`: the number of frequent tokens that drafts score beside those of the text, "all"
            for the whole vocabulary; and `window=N`: the number of latest positions that drafts attend to in long
            contexts, "all" for all of the context.

    Raises:
        InvalidArgumentError: `argument` is something else.
        UnknownNameError: the runtime has no such draft view.
    """

    name = "effort"
    takes_effort = True
    layers: int | None = None

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        self._begin(setup, argument)

    def _begin(self, setup: DrafterSetup, argument: str) -> None:
        options = read_options(self.name, argument, HEAD | WINDOW)
        self.runtime = setup.runtime
        self.views = draft_views(setup.runtime, setup.view, setup.progress, waits=setup.waits)
        self.head = Head(self.name, options["head"], setup, setup.runtime, setup.tokenizer)
        self.window = DraftWindow(self.name, options["window"], setup.runtime)

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Drafting:
        """Propose tokens until the plan is full, the policy stops, or an end token comes up."""
        view = plan.view or self.views[0]
        self.head.follow(context.history, self.runtime.config.vocab_size)

        def ask(wish: Wish) -> Ask:
            window = self.window.after(context.cache.length, windowed=plan.windowed)
            rows = wish.rows(context.cache, context.efforts(wish.effort), layers=self.layers, window=window)
            return Ask(self.runtime, rows, view)

        steps = ModelSteps(
            name=self.name, view=view, runtime=self.runtime, cache=context.cache, ask=ask, head=self.head.rows
        )
        return steps.go_on(Draft(), plan.effort, plan, context, policy)

    @property
    def windowed_from(self) -> int | None:
        """Tokens of context from which a plan may choose whether steps attend to a window or to all of it."""
        return self.window.chosen_from

    @property
    def likely(self) -> int:
        """Likely tokens of a row that the head learns from."""
        return self.head.likely

    def ranked(self, likely: Sequence[Sequence[int]], kept: Sequence[int]) -> None:
        """Note what the verifier thought likely."""
        self.head.ranked(likely, kept)


class EarlyExitDrafter(EffortDrafter):
    """Runs only the first layers, then the final norm and the logits layer.

    It leaves keys and values of those layers in the cache, and garbage in the others; every later pass over these
    positions writes all layers again. Models that were not trained for it guess badly from their middle layers: with
    them the drafter is for comparison. Sources: LayerSkip (Elhoushi et al. 2404.16710, section 4.3), Draft & Verify
    (Zhang et al. 2309.08168).

    Args:
        argument: `L[,head=N][,window=N]`: number of layers, at least 1 and fewer than the model has; and as for
            `effort`.

    Raises:
        InvalidArgumentError: `argument` is something else.
        UnknownNameError: the runtime has no such draft view.
    """

    name = "early-exit"

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        most = setup.runtime.config.num_layers - 1
        layers, _, options = argument.partition(",")
        self.layers = whole_number("early-exit", "number of layers", layers, low=1, high=most)
        self._begin(setup, options)


def draft_views(
    runtime: Runtime, asked: str, progress: Progress | None = None, *, waits: bool = False
) -> tuple[str, ...]:
    """The draft views that were asked for, made ready: one, several with commas between, or "auto" for the one that is
    fastest on the runtime. `progress` reports those that are built. With `waits`, those that the runtime makes late are
    left to it.

    Raises:
        UnknownNameError: the runtime has no such view.
        InvalidArgumentError: one is asked for twice.
    """
    infos = runtime.views()
    known = [EXACT, *infos]
    views = tuple(runtime.info.auto_draft[0] if view == "auto" else view for view in asked.replace(" ", "").split(","))
    for view in views:
        if view not in known:
            raise missing_view(view, ["auto", *known], kind="draft view")
        if views.count(view) > 1:
            raise InvalidArgumentError(f"draft view {view!r} is asked for twice")
        if waits and view in infos and infos[view].late is not None:
            continue
        runtime.prepare(view, progress=None if progress is None else partial(progress, f"building draft view {view}"))
    return views
