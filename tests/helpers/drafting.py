"""What tests of drafters share: a policy that always goes on, and drafters at work without an engine."""

from __future__ import annotations

from typing import Any

from fake_runtime import ByteTokenizer, FakeRuntime

from specdec.drafters.base import Draft, DraftContext, DrafterSetup, Drafting, LoadedModel, finish
from specdec.drafters.registry import create
from specdec.engine.decode import answer
from specdec.engine.efforts import EffortScale
from specdec.engine.policy import DraftPlan
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one


class EveryStep:
    """A policy that always goes on, and remembers what it saw."""

    def __init__(self, length: int = 6, effort: float = 0.7) -> None:
        self.length, self.effort = length, effort
        self.steps: list[Any] = []
        self.outcomes: list[Any] = []

    def plan(self, _state: Any) -> DraftPlan:
        return DraftPlan(num_draft_tokens=self.length, effort=self.effort)

    def next_step(self, signals: Any) -> float:
        self.steps.append(signals)
        return self.effort

    def observe(self, outcome: Any) -> None:
        self.outcomes.append(outcome)


def other_model(**options: Any) -> LoadedModel:
    return LoadedModel(FakeRuntime(**options), ByteTokenizer())


def setup_of(runtime: FakeRuntime, **options: Any) -> DrafterSetup:
    tokenizer = ByteTokenizer()
    defaults = {"vocabulary": "bytes", "tokenizer": tokenizer, "load_model": lambda _name: other_model(seed=9)}
    return DrafterSetup(runtime, "bucket", **(defaults | options))


def context_of(runtime: FakeRuntime, history: list[int], **options: Any) -> DraftContext:
    cache = runtime.new_cache(400)
    if history[1:]:
        forward_one(runtime, history[:-1], cache, effort=EffortSchedule())
    efforts = EffortScale(EffortSchedule(0.5), runtime.config)
    return DraftContext(history, cache, efforts, Sampler(SamplingParams()), **options)


def draft_of(spec: str, history: list[int], length: int = 6, **options: Any) -> Draft:
    """One draft of a drafter without a model of its own."""
    runtime = FakeRuntime()
    plan = DraftPlan(num_draft_tokens=length, effort=0.7)
    drafter = create(spec, setup_of(runtime))
    return drafted(drafter.draft(plan, context_of(runtime, history, **options), policy=EveryStep()))


def drafted(outcome: Draft | Drafting) -> Draft:
    """The draft of a drafter whose passes are answered at once."""
    steps = finish(outcome)
    try:
        ask = next(steps)
        while True:
            ask = steps.send(answer(ask))
    except StopIteration as stop:
        return stop.value
