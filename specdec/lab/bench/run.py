"""The run itself: every prompt is answered by every contender in turn, plain decoding always among them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import specdec
from specdec.engine.prompt import encode_prompt
from specdec.engine.prompt_cache import PromptCache
from specdec.errors import InvalidArgumentError
from specdec.lab.bench.compare import Comparison
from specdec.lab.bench.grid import Contender
from specdec.lab.bench.plan import Plan
from specdec.lab.bench.prompts import TaskPrompt
from specdec.lab.bench.sample import Place, Sample
from specdec.lab.journal import Journal
from specdec.policies.registry import names as policy_names
from specdec.progress import Progress

if TYPE_CHECKING:
    from specdec.engine.result import Result
    from specdec.model.loaded import Model

_WARM_UP = TaskPrompt("warm-up", "0", "Hello")
_WARM_UP_TOKENS = 8
_RELEARN = 2  # prompts that learning contenders answer again, uncounted, when a run goes on


def measure(model: Model, plan: Plan, journal: Journal[Sample], *, progress: Progress | None = None) -> list[Sample]:
    """Every answer of the plan, in its order; those that the journal holds are not asked for again.

    Args:
        model: answers. Its memory and prompt cache are replaced: each contender has a memory of its own.
        plan: what to ask.
        journal: gets every answer as it comes.
        progress: told of every answer.

    Raises:
        DifferenceFoundError: an answer is not plain decoding's.
        InvalidArgumentError: a policy, drafter or view refuses what it was asked, a prompt does not fit the model's
            context, or the journal cannot be written.
    """
    _check_prompts(model, plan)
    model.prompt_cache = PromptCache()  # the same prompt for every contender: only the first one has to read it
    asker, comparison = _Asker(model, plan), Comparison()
    places = list(plan.places())
    there = [journal.results[place.key] for place in places if place.key in journal.results]
    for sample in there:
        comparison.add(sample)
    samples = {sample.place: sample for sample in there}
    for index, place in enumerate(places):
        if place in samples:
            continue
        asker.prepare(place.condition, answered=[one for one in places[:index] if one.condition == place.condition])
        if progress is not None:
            progress("measuring", len(samples), len(places))
        sample = Sample.of(place, asker.ask(place))
        comparison.add(sample)
        journal.add(place.key, sample.to_dict())
        samples[place] = sample
    if progress is not None:
        progress("measuring", len(samples), len(places))
    return [samples[place] for place in places]


def _check_prompts(model: Model, plan: Plan) -> None:
    """Refuse a prompt that the model cannot take now, not in the middle of the run."""
    for prompt in plan.prompts:
        try:
            encode_prompt(prompt.content, model.tokenizer, model.config, chat=plan.chat or _is_chat(prompt))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{prompt.task} prompt {prompt.name}: {error}") from None


def _is_chat(prompt: TaskPrompt) -> bool:
    """Messages always take the template, and refuse to do without it."""
    return not isinstance(prompt.content, str)


class _Asker:
    """Asks the model for the answers of a plan, each contender with a memory of its own."""

    def __init__(self, model: Model, plan: Plan) -> None:
        self._model, self._plan, self._memories = model, plan, _Memories()
        self._contenders = {one.name: one for one in plan.grid.contenders}
        self._prepared: int | None = None

    def prepare(self, condition: int, *, answered: list[Place]) -> None:
        """Warm up for a condition: views are built, pages touched, costs known, threads awake. Where a run goes on,
        contenders that learn answer the last prompts again, since what they had learnt was not kept."""
        if self._prepared == condition:
            return
        self._memories.forget()
        for contender in self._contenders.values():
            with self._memories.of(self._model, contender.name, -1):
                self._generate(_WARM_UP, contender, condition, max_tokens=_WARM_UP_TOKENS)
        for prompt in list(dict.fromkeys(place.prompt for place in answered))[-_RELEARN:]:
            for place in answered:
                if place.prompt == prompt and self._contenders[place.contender].learns:
                    self.ask(place)
        self._prepared = condition

    def ask(self, place: Place) -> Result:
        """The answer that belongs at a place."""
        with self._memories.of(self._model, place.contender, place.repetition):
            prompt, contender = self._plan.prompts[place.prompt], self._contenders[place.contender]
            return self._generate(prompt, contender, place.condition, max_tokens=self._plan.max_tokens)

    def _generate(self, prompt: TaskPrompt, contender: Contender, condition: int, *, max_tokens: int) -> Result:
        options = {**self._plan.grid.conditions[condition].options, **contender.options}
        chat = self._plan.chat or _is_chat(prompt)
        return specdec.generate(self._model, prompt.content, max_tokens=max_tokens, chat=chat, **options)


class _Memories:
    """What each contender's policy has learnt, apart for each repetition: no answer may teach a later one to the same
    prompt, or another contender. What drafters and the engine keep (tables, other models, costs) is shared by all."""

    def __init__(self) -> None:
        self._common: dict[Any, Any] = {}
        self._learnt: dict[tuple[str, int], dict[Any, Any]] = {}

    @contextlib.contextmanager
    def of(self, model: Model, contender: str, repetition: int) -> Iterator[None]:
        """The model has the memory of a contender in a repetition."""
        learnt = self._learnt.setdefault((contender, repetition), {})
        model.shared = self._common | learnt
        try:
            yield
        finally:
            policies = set(policy_names())
            for key, value in model.shared.items():
                # A policy's key begins with its name (`specdec.engine.policy.Knowledge`).
                (learnt if isinstance(key, tuple) and key[0] in policies else self._common)[key] = value

    def forget(self) -> None:
        """Drop what was learnt in the warm-up and under other conditions."""
        self._learnt.clear()
