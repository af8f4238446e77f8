"""The run itself: every prompt is answered by every contender in turn, plain decoding always among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from specdec.progress import Progress

if TYPE_CHECKING:
    from specdec.engine.memory import Memory
    from specdec.engine.result import Result
    from specdec.model.loaded import Model

_WARM_UP = TaskPrompt("warm-up", "0", "Hello")
_WARM_UP_TOKENS = 8
_RELEARN = 2  # prompts that learning contenders answer again, uncounted, when a run goes on


def measure(model: Model, plan: Plan, journal: Journal[Sample], *, progress: Progress | None = None) -> list[Sample]:
    """Every answer of the plan, in its order; answers that the journal holds are not asked for again.

    Args:
        model: answers. Its memory and prompt cache are replaced: each contender has a memory of its own.
        plan: what to ask.
        journal: gets every answer as it comes.
        progress: called for every answer.

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
        self._model, self._plan, self._memories = model, plan, _Memories(model)
        self._contenders = {one.name: one for one in plan.grid.contenders}
        self._prepared: int | None = None

    def prepare(self, condition: int, *, answered: list[Place]) -> None:
        """Warm up for a condition: views are built, pages touched, costs known, threads awake. Where a run goes on,
        contenders that learn answer the last prompts again, since what they had learnt was not kept."""
        if self._prepared == condition:
            return
        self._memories.forget()
        for contender in self._contenders.values():
            self._memories.use(contender.name, -1)
            self._generate(_WARM_UP, contender, condition, max_tokens=_WARM_UP_TOKENS)
        for prompt in list(dict.fromkeys(place.prompt for place in answered))[-_RELEARN:]:
            for place in answered:
                if place.prompt == prompt and self._contenders[place.contender].learns:
                    self.ask(place)
        self._prepared = condition

    def ask(self, place: Place) -> Result:
        """The answer that belongs at a place."""
        self._memories.use(place.contender, place.repetition)
        prompt, contender = self._plan.prompts[place.prompt], self._contenders[place.contender]
        return self._generate(prompt, contender, place.condition, max_tokens=self._plan.max_tokens)

    def _generate(self, prompt: TaskPrompt, contender: Contender, condition: int, *, max_tokens: int) -> Result:
        options = {**self._plan.grid.conditions[condition].options, **contender.options}
        chat = self._plan.chat or _is_chat(prompt)
        return specdec.generate(self._model, prompt.content, max_tokens=max_tokens, chat=chat, **options)


class _Memories:
    """A memory of the model's for each contender and repetition: no answer may teach a later one to the same prompt, or
    another contender. What drafters have read and the costs of passes are shared by all."""

    def __init__(self, model: Model) -> None:
        self._model, self._common = model, model.memory.fresh()
        self._own: dict[tuple[str, int], Memory] = {}

    def use(self, contender: str, repetition: int) -> None:
        """Give the model the memory of a contender in a repetition."""
        key = contender, repetition
        if key not in self._own:
            self._own[key] = self._common.fresh()
        self._model.memory = self._own[key]

    def forget(self) -> None:
        """Drop what was learnt in the warm-up and under other conditions."""
        self._own.clear()
