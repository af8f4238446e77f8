"""Tokens that a runtime begins before they are asked for: the next pass takes them; prompts and policies come after."""

from __future__ import annotations

from typing import Any

import pytest
from fake_runtime import ByteTokenizer, FakeRuntime

import specdec
from specdec.engine.answer import Answer
from specdec.engine.begin import begin
from specdec.engine.scheduler import Scheduler
from specdec.engine.together import apply
from specdec.errors import InvalidArgumentError
from specdec.model.loaded import Model
from specdec.runtimes.base import Rows, resolve_efforts

ENDLESS = ByteTokenizer(eos=frozenset())
PLAIN = {"speculate": False, "temperature": 0.0}


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes go as far ahead as they may, however slow this machine is."""
    monkeypatch.setattr("specdec.engine.ahead._MOST_S", 1e9)


class BeginningRuntime(FakeRuntime):
    """Says that it has begun what it may begin, and counts how much of that the next pass takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(most_ahead=15, **options)
        self.taken = self.lost = 0
        self._begun: dict[int, tuple[int, int]] = {}  # length of a cache, and tokens begun

    def forward(self, batch: Any, *, view: str = "exact", states: bool = False) -> list[Any]:
        begun, self._begun = self._begun, {}
        if begun:
            asks = all(begun.get(id(rows.cache), (-1, 0))[0] == rows.cache.length for rows in batch)
            whole = all(len(rows.tokens) == 1 and rows.logits == "choices" for rows in batch)
            self.taken, self.lost = self.taken + (asks and whole), self.lost + (not (asks and whole))
        made = super().forward(batch, view=view, states=states)
        if len(batch) == 1:
            return made
        for rows, one in zip(batch, made, strict=True):
            if rows.further:
                assert rows.cache.length + rows.further < rows.cache.capacity
                object.__setattr__(one, "begun", rows.further)
                self._begun[id(rows.cache)] = rows.cache.length, rows.further
        return made


def run(scheduler: Scheduler, answers: list[Answer]) -> None:
    """Steps until all answers have ended."""
    live = {id(one.sequence): one for one in answers if one.sequence is not None}
    while live:
        step(scheduler, live)


def step(scheduler: Scheduler, live: dict[int, Answer]) -> None:
    for event in scheduler.step():
        answer = live[id(event.sequence)]
        apply(event, answer)
        if answer.stopped_by is not None:
            scheduler.remove(event.sequence)
            del live[id(event.sequence)]
            answer.close()


def asked(model: Model, number: int, **options: Any) -> Answer:
    prompt = list(b"the quick brown fox, the quick"[: 3 + number])
    return begin(model, prompt, {"max_tokens": 60, **PLAIN, **options}, caller="test")


def alone(number: int, count: int) -> list[int]:
    prompt = list(b"the quick brown fox, the quick"[: 3 + number])
    return specdec.generate(Model(FakeRuntime(seed=3), ENDLESS), prompt, max_tokens=count, speculate=False).tokens


def test_plain_answers_take_all_that_is_begun() -> None:
    runtime = BeginningRuntime(seed=3)
    scheduler, model = Scheduler(runtime), Model(runtime, ENDLESS)
    answers = [asked(model, number, max_tokens=150 + 9 * number) for number in range(5)]
    for answer in answers:
        scheduler.add(answer.sequence)
    run(scheduler, answers)
    assert (runtime.lost, runtime.taken > 4) == (0, True)
    for number, answer in enumerate(answers):
        assert answer.result().tokens == alone(number, 150 + 9 * number)


def test_a_prompt_comes_after_what_is_begun() -> None:
    runtime = BeginningRuntime(seed=3)
    scheduler, model = Scheduler(runtime), Model(runtime, ENDLESS)
    live: dict[int, Answer] = {}
    answers = [asked(model, number, max_tokens=200) for number in range(5)]
    for number, answer in enumerate(answers):
        scheduler.add(answer.sequence)
        live[id(answer.sequence)] = answer
        if number:
            steps = 0
            while answer.sequence.unread:
                step(scheduler, live)
                steps += 1
            assert steps <= 2  # not longer than what was begun
            for _ in range(4):
                step(scheduler, live)
    run(scheduler, list(live.values()))
    assert (runtime.lost, runtime.taken > 4) == (0, True)
    for number, answer in enumerate(answers):
        assert answer.result().tokens == alone(number, 200)


@pytest.mark.parametrize("options", [{}, {"policy": "fixed", "drafter": "ngram"}], ids=str)
def test_policies_are_asked_when_nothing_is_begun(options: dict[str, Any]) -> None:
    runtime = BeginningRuntime(seed=3)
    model = Model(runtime, ENDLESS)
    prompts = [list(b"the quick brown fox, the quick"[: 3 + number]) for number in range(4)]
    found = specdec.generate(model, prompts, max_tokens=150, **options)
    assert [one.tokens for one in found] == [alone(number, 150) for number in range(4)]
    assert runtime.lost == 0


def test_an_end_that_nobody_knew_leaves_the_rest_as_it_is() -> None:
    runtime = BeginningRuntime(seed=3)
    model, wanted = Model(runtime, ENDLESS), [alone(number, 90) for number in range(4)]
    scheduler = Scheduler(runtime)
    end = wanted[2][40]
    cuts = [next((place for place, token in enumerate(one) if token == end), 89) for one in wanted]
    answers = [asked(model, number, max_tokens=90, stop_token_ids=[end]) for number in range(4)]
    for answer in answers:
        scheduler.add(answer.sequence)
    run(scheduler, answers)
    assert [answer.result().tokens for answer in answers] == [
        one[: cut + 1] for one, cut in zip(wanted, cuts, strict=True)
    ]
    assert runtime.taken > 0


@pytest.mark.parametrize(("ahead", "further"), [(0, 3), (4, -1)])
def test_what_means_nothing_is_refused(ahead: int, further: int) -> None:
    runtime = BeginningRuntime(seed=3)
    rows = Rows(
        runtime.new_cache(50), [1], resolve_efforts(1.0, runtime.config), logits="choices", ahead=ahead, further=further
    )
    with pytest.raises(InvalidArgumentError, match="further tokens"):
        runtime.forward([rows])
