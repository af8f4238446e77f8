"""The drafters of an answer, which are made when a round first needs one where another answer has had the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_runtime import ByteTokenizer, FakeRuntime

import specdec
from specdec.drafters.base import Draft
from specdec.drafters.registry import create
from specdec.engine import speculation
from specdec.engine.crew import Crew, Known
from specdec.engine.policy import DraftOption, DraftPlan, RoundState
from specdec.errors import MemoryShortError
from specdec.model.loaded import Model
from specdec.runtimes.base import Late, ViewInfo

PROMPT = list(b"the quick brown fox, the quick brown dog, the quick")
AUTO = list(speculation.AUTO_DRAFTERS)


class Asking:
    """Drafts with one drafter in every round; with "" never."""

    def __init__(self, drafter: str = "") -> None:
        self.drafter, self.states = drafter, list[RoundState]()

    def plan(self, state: RoundState) -> DraftPlan:
        self.states.append(state)
        length = min(4, state.max_draft_tokens) if self.drafter else 0
        return DraftPlan(num_draft_tokens=length, effort=1.0, drafter=self.drafter or None)

    def next_step(self, signals: object) -> float | None:
        return 1.0

    def observe(self, outcome: object) -> None:
        pass


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the drafters that were made."""
    names: list[str] = []

    def making(spec: str, setup: Any) -> Any:
        names.append(spec)
        return create(spec, setup)

    monkeypatch.setattr(speculation, "create_drafter", making)
    return names


def model_of(recycles: int = 16) -> Model:
    return Model(FakeRuntime(seed=3, most_ahead=15, recycles=recycles), ByteTokenizer())


def answer(model: Model, drafter: str = "", count: int = 30) -> tuple[list[int], list[RoundState]]:
    policy = Asking(drafter)
    return specdec.generate(model, PROMPT, max_tokens=count, policy=policy).tokens, policy.states


@pytest.mark.parametrize("drafter", ["", "recycle"])
def test_where_the_runtime_drafts_later_answers_need_none(made, drafter):
    model = model_of()
    first, states = answer(model, drafter)
    assert made == AUTO
    second, again = answer(model, drafter)
    assert made == AUTO
    assert second == first
    assert [(one.options, one.matches) for one in again] == [(one.options, one.matches) for one in states]


@pytest.mark.parametrize(("recycles", "drafter"), [(16, "effort"), (16, "ngram"), (0, "effort"), (0, "")])
def test_a_round_that_needs_one_makes_all(made, recycles, drafter):
    """Without turns a decision needs the matches."""
    model = model_of(recycles)
    first, states = answer(model, drafter)
    policy = Asking(drafter)
    stream = specdec.stream(model, PROMPT, max_tokens=30, policy=policy)
    assert made == AUTO
    tokens = [token for piece in stream for token in piece.tokens]
    assert made == AUTO * 2
    assert tokens == first
    assert [(one.options, one.matches) for one in policy.states] == [(one.options, one.matches) for one in states]
    assert stream.result().stats.drafted > 0 or not drafter


def test_drafters_that_the_caller_named_are_made_at_once(made):
    model = model_of()
    for count in (1, 2):
        specdec.stream(model, PROMPT, max_tokens=9, drafter="ngram;recycle").close()
        assert made == ["ngram", "recycle"] * count


def test_answers_of_an_owner_are_kept_though_no_round_drafted(made):
    model = model_of()
    with specdec.Batch(model) as batch:
        kept = []
        for _ in range(2):
            with batch.submit(PROMPT, owner="a", max_tokens=20, policy=Asking()) as generation:
                list(generation)
            kept.append(model.memory.drafters.answers.of("a").tokens)
    assert 20 < kept[0] < kept[1]


def test_a_drafter_that_memory_was_short_for_is_tried_again(monkeypatch, made):
    making, short = speculation.create_drafter, [True]

    def failing(spec: str, setup: Any) -> Any:
        if spec == "effort" and short:
            short.clear()
            raise MemoryShortError("no memory")
        return making(spec, setup)

    monkeypatch.setattr(speculation, "create_drafter", failing)
    model = model_of()
    with pytest.warns(UserWarning, match="drafting continues without it"):
        _, states = answer(model)
    assert {one.drafter for one in states[0].options} == set(AUTO[1:])
    _, states = answer(model)
    assert {one.drafter for one in states[0].options} == set(AUTO)


def test_what_is_known_holds_until_a_late_view_is_there():
    views = {"int4": ViewInfo(name="int4", late=Late(exact_s=1.0, view_s=0.5))}
    runtime: Any = SimpleNamespace(views=lambda: views)
    known = Known(
        (DraftOption("effort", "int4", True, waits=True), DraftOption("ngram", None, False)), frozenset({"effort"})
    )
    assert known.holds(runtime)
    views["int4"] = ViewInfo(name="int4")
    assert not known.holds(runtime)


class Hoarder:
    """Has keys and values of its own."""

    views: tuple[str, ...] = ()
    takes_effort = False

    def draft(self, *_: object, **__: object) -> Draft:
        return Draft()

    def cache_bytes(self, capacity: int) -> int:
        return 10 * capacity


class Reader(Hoarder):
    """Learns from logits, and has nothing of its own."""

    cache_bytes = None  # type: ignore[assignment]

    def verified(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("kind", [Hoarder, Reader])
def test_drafters_that_matter_before_they_draft_may_not_be_late(kind):
    assert not Crew(lambda: {"mine": kind()}).may_wait
    assert Crew(lambda: {"ngram": create("ngram", None)}).may_wait
    assert Crew(lambda: {"mine": Hoarder()}).cache_bytes(7) == 70
