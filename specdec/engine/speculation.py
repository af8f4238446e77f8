"""From settings to `Speculation`: drafters, what they offer, the policy and what it starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.drafters.base import DraftContext, Drafter, DrafterSetup
from specdec.drafters.registry import create as create_drafter
from specdec.engine.costs import machine_costs
from specdec.engine.efforts import EffortScale
from specdec.engine.options import GenerationSettings
from specdec.engine.policy import DraftOption, Knowledge
from specdec.engine.policy_guard import GuardedPolicy
from specdec.engine.round import Engine, Speculation
from specdec.errors import InvalidArgumentError, MemoryShortError
from specdec.model.effort import EffortSchedule
from specdec.policies.registry import create as create_policy
from specdec.warn import warn

if TYPE_CHECKING:
    from specdec.model.loaded import Model

AUTO_DRAFTERS = ("effort", "ngram")  # what the drafter "auto" offers
TRIED_EFFORTS = (0.2, 0.5, 1.0)  # whose draft steps are measured beforehand
_OTHER_EFFORT = 0.15  # of draft views other than the fastest one


def speculation(model: Model, engine: Engine, settings: GenerationSettings, end_tokens: frozenset[int]) -> Speculation:
    """Everything that the rounds of a generation need to draft.

    A policy that learns gets this machine's costs, measured when the model is first used, and the model's memory.

    Raises:
        InvalidArgumentError: a policy or drafter refuses its parameters, or a drafter is asked for twice.
        UnknownNameError: no policy, drafter or draft view of that name.

    Warns:
        UserWarning: drafting at a higher effort than verification.
    """
    base = settings.draft_effort or _default_effort(model, settings.draft_view)
    efforts = EffortScale(base, model.config)
    verify_effort = settings.verify_effort.mean(model.config)
    if settings.draft_effort is not None and efforts.mean > verify_effort:
        warn(f"draft effort {efforts.mean:g} is above verify effort {verify_effort:g}: drafts cost more than they save")
    policy = settings.policy
    policy_name = policy.partition(":")[0] if isinstance(policy, str) else type(policy).__name__
    guarded = GuardedPolicy(create_policy(policy) if isinstance(policy, str) else policy, policy_name)
    drafters = _drafters(model, settings)
    options = tuple(
        DraftOption(name, view, drafter.takes_effort)
        for name, drafter in drafters.items()
        for view in drafter.views or (None,)
    )
    if guarded.learns:
        tried = TRIED_EFFORTS if settings.draft_effort is None else (efforts.mean,)
        guarded.begin(Knowledge(costs=machine_costs(model, options, efforts, tried), memory=model.shared))
    return Speculation(
        drafters=drafters,
        options=options,
        policy=guarded,
        context=DraftContext(
            history=engine.tokens,
            cache=engine.cache,
            efforts=efforts,
            sample=engine.sampler,
            end_tokens=end_tokens,
            prompt_length=len(engine.tokens),
            is_greedy=settings.sampling.temperature == 0,
        ),
        draft_len=settings.draft_len,
        draft_effort=efforts.mean,
        verify_effort=verify_effort,
        temperature=settings.sampling.temperature,
        is_effort_asked=settings.draft_effort is not None,
        trust=settings.trust,
    )


def _default_effort(model: Model, view: str) -> EffortSchedule:
    """What to draft at where the caller leaves it open: its proportions, and its mean where the policy takes that."""
    first = view.split(",")[0]
    if first not in ("auto", model.runtime.info.auto_draft[0]):
        return EffortSchedule(_OTHER_EFFORT)
    fastest, efforts = model.auto_draft
    return efforts if first in ("auto", fastest) else EffortSchedule(model.runtime.info.auto_draft[1])


def _drafters(model: Model, settings: GenerationSettings) -> dict[str, Drafter]:
    """The drafters that were asked for, by name, in order.

    Raises:
        InvalidArgumentError: one is asked for twice.
    """
    tokenizer = model.tokenizer
    setup = DrafterSetup(
        model.runtime,
        model.auto_draft[0] if settings.draft_view == "auto" else settings.draft_view,
        vocabulary=None if tokenizer is None else tokenizer.fingerprint,
        tokenizer=tokenizer,
        load_model=model.load_other,
        shared=model.shared,
    )
    asked: list[str | Drafter] = []
    for one in settings.drafter if isinstance(settings.drafter, tuple) else (settings.drafter,):
        asked += [part.strip() for part in one.split(";")] if isinstance(one, str) else [one]
    drafters: dict[str, Drafter] = {}
    for one in asked:
        for spec in AUTO_DRAFTERS if one == "auto" else (one,):
            name = spec if isinstance(spec, str) else type(spec).__name__
            if name in drafters:
                raise InvalidArgumentError(f"drafter {name!r} is asked for twice")
            try:
                drafters[name] = create_drafter(spec, setup) if isinstance(spec, str) else spec
            except MemoryShortError as error:
                if one != "auto" or settings.draft_view != "auto":
                    raise
                warn(f"{error}; drafting goes on without it")
    return drafters
