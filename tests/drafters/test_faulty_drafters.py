"""A drafter's bug is its own: `PluginError` names it wherever it shows, and the model answers as before."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from fake_runtime import fake_model

import specdec
from specdec.drafters import registry
from specdec.drafters.base import Ask, Draft
from specdec.errors import InvalidArgumentError, MemoryShortError, PluginError
from specdec.model.effort import resolve_efforts
from specdec.registry import Registry
from specdec.runtimes.base import Rows
from specdec.weights import registry as views
from specdec.weights.bucket import BucketView


class Drafter:
    """Proposes nothing; tests give it one faulty member."""

    views: Any = ()
    takes_effort: Any = False

    def draft(self, plan: Any, context: Any, *, policy: Any) -> Any:
        return Draft()


def failing(*_: Any, **__: Any) -> Any:
    return 1 // 0


def asking(ask: Callable[[Any], Any]) -> Callable[..., Any]:
    """A method `draft` that asks for one pass."""

    def draft(self: Any, plan: Any, context: Any, *, policy: Any) -> Any:
        yield ask(context)
        return Draft()

    return draft


def late(self: Any, plan: Any, context: Any, *, policy: Any) -> Any:
    """Fails after its first pass."""
    model = self.model
    yield Ask(model.runtime, Rows(context.cache, [1], resolve_efforts(1.0, model.config)), "int4")
    raise KeyError("later")


def rows(context: Any, tokens: list[int]) -> Rows:
    return Rows(context.cache, tokens, context.efforts(0.5))


def an_ask(context: Any, tokens: list[int], view: str = "int4") -> Ask:
    return Ask(MODEL.runtime, rows(context, tokens), view)


MODEL = fake_model()
DIVISION = "ZeroDivisionError: .*"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "draft": ({"draft": failing}, rf"failed in draft: {DIVISION}"),
    "draft gives a list": ({"draft": lambda *_, **__: [1]}, r"draft must return a Draft, or be a generator.*not \[1\]"),
    "draft gives nothing": ({"draft": lambda *_, **__: None}, "draft must return a Draft, or be a generator.*not None"),
    "after a pass": ({"draft": late}, "failed in draft: KeyError: 'later'"),
    "an error of ours": (
        {"draft": lambda *_, **__: (_ for _ in ()).throw(InvalidArgumentError("bad"))},
        "failed in draft: InvalidArgumentError: bad",
    ),
    "yields a number": ({"draft": asking(lambda _: 3)}, "draft must yield Asks for Rows, not 3"),
    "yields no rows": (
        {"draft": asking(lambda _: Ask(MODEL.runtime, 3, "int4"))},  # type: ignore[arg-type]
        "draft must yield Asks for Rows, not Ask",
    ),
    "no runtime": (
        {"draft": asking(lambda context: Ask(3, rows(context, [1]), "int4"))},  # type: ignore[arg-type]
        "asked for a pass that cannot run: 'int' object has no attribute 'forward'",
    ),
    "an unknown token": (
        {"draft": asking(lambda context: an_ask(context, [999]))},
        "asked for a pass that cannot run: token id 999 is outside the vocabulary",
    ),
    "an unknown view": (
        {"draft": asking(lambda context: an_ask(context, [1], "int5"))},
        "asked for a pass that cannot run: unknown view 'int5'",
    ),
    "tokens outside": ({"draft": lambda *_, **__: Draft([258])}, "tokens must be whole numbers from 0 to 257, not 258"),
    "tokens below": ({"draft": lambda *_, **__: Draft([-1])}, "tokens must be whole numbers from 0 to 257, not -1"),
    "tokens of text": ({"draft": lambda *_, **__: Draft(["a"])}, "tokens must be whole numbers from 0 to 257, not 'a'"),
    "tokens without end": ({"draft": lambda *_, **__: Draft([1] * 99)}, "drafted 99 tokens where [0-9]+ were allowed"),
    "one number": ({"draft": lambda *_, **__: Draft(7)}, "tokens must be a list of whole numbers, not 7"),
    "sources": ({"draft": lambda *_, **__: Draft([1, 2], sources=["x"])}, "sources must be one str for each of the 2"),
    "signals": ({"draft": lambda *_, **__: Draft([1], signals=[3])}, "signals must be one StepSignals for each of the"),
    "parents": ({"draft": lambda *_, **__: Draft([1], parents=[4])}, "row 0 of a tree must follow an earlier row"),
    "parents of nothing": ({"draft": lambda *_, **__: Draft([1], parents=3)}, "gave a wrong answer: .*int.*has no len"),
    "views": ({"views": "int4"}, "views must be a tuple of names, not 'int4'"),
    "views of numbers": ({"views": (3,)}, r"views must be a tuple of names, not \(3,\)"),
    "match_length": ({"match_length": failing}, rf"failed in match_length: {DIVISION}"),
    "match_length of text": (
        {"match_length": lambda *_: "2"},
        "match_length must be a whole number of at least 0, not '2'",
    ),
}


@pytest.mark.parametrize("many", [False, True], ids=["alone", "in a batch"])
@pytest.mark.parametrize("case", CASES)
def test_a_bug_is_named(case: str, many: bool) -> None:
    members, message = CASES[case]
    drafter = type("Faulty", (Drafter,), members)()
    drafter.model = MODEL
    with specdec.Batch(MODEL) as batch:
        begin = batch.submit if many else functools.partial(specdec.stream, MODEL)
        with pytest.raises(PluginError, match=rf"^drafter 'Faulty' (gave a wrong answer: )?{message}") as caught:
            _ = [*begin([1, 2, 3], max_tokens=8, policy="fixed", drafter=drafter)]
    assert (caught.value.kind, caught.value.name) == ("drafter", "Faulty")
    # The model answers as before.
    plain = specdec.generate(fake_model(), [1, 2, 3], max_tokens=8, speculate=False)
    assert specdec.generate(MODEL, [1, 2, 3], max_tokens=8, policy="fixed").tokens == plain.tokens


@pytest.mark.parametrize("of", [np.array, lambda tokens: [np.int64(one) for one in tokens]], ids=["array", "numbers"])
def test_drafts_of_numpy(of: Callable[[list[int]], Any]) -> None:
    plain = specdec.generate(MODEL, [1, 2, 3], max_tokens=8, speculate=False).tokens

    def draft(self: Any, plan: Any, context: Any, *, policy: Any) -> Any:
        rest = plain[len(context.history) - 3 :][: plan.num_draft_tokens]
        return Draft(of(rest))

    drafter = type("Numpy", (Drafter,), {"draft": draft})()
    result = specdec.generate(MODEL, [1, 2, 3], max_tokens=8, policy="fixed", drafter=drafter)
    assert result.tokens == plain
    assert result.stats.accepted
    assert json.loads(json.dumps(result.to_dict()))["tokens"] == plain


def test_properties_that_fail_are_named() -> None:
    drafter = type("Faulty", (Drafter,), {"takes_effort": False})()
    type(drafter).views = property(failing)
    with pytest.raises(PluginError, match=rf"^drafter 'Faulty' failed in its properties: {DIVISION}"):
        specdec.generate(MODEL, [1], drafter=drafter)


def test_a_drafter_that_will_not_end_is_named() -> None:
    def draft(self: Any, plan: Any, context: Any, *, policy: Any) -> Any:
        while True:
            try:
                yield an_ask(context, [1])
            except GeneratorExit:
                continue

    drafter = type("Stubborn", (Drafter,), {"draft": draft})()
    generation = specdec.stream(MODEL, [1, 2], max_tokens=8, policy="fixed", drafter=drafter)
    MODEL.runtime.fail_at_pass = len(MODEL.runtime.passes) + 3  # type: ignore[attr-defined]
    try:
        with pytest.raises(PluginError, match=r"^drafter 'Stubborn' failed in draft, which was to end: RuntimeError"):
            list(generation)
    finally:
        MODEL.runtime.fail_at_pass = None  # type: ignore[attr-defined]


def test_a_shortage_of_memory_is_nobodys_bug() -> None:
    def draft(*_: Any, **__: Any) -> Any:
        raise MemoryShortError("no memory for draft view 'int4'")

    with pytest.raises(MemoryShortError, match=r"^no memory for draft view"):
        specdec.generate(MODEL, [1], policy="fixed", drafter=type("Large", (Drafter,), {"draft": draft})())


@pytest.fixture
def drafters(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    fresh: Registry[Any] = Registry("drafter", "specdec.drafters")
    monkeypatch.setattr(registry, "_registry", fresh)
    return fresh


def refusing(error: Exception) -> Callable[..., Any]:
    def construct(argument: str, setup: Any) -> Any:
        raise error

    return construct


def test_errors_of_constructors_name_the_drafter(
    drafters: Registry[Any], text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafters.register("mine", refusing(ValueError("give a number")))
    drafters.register("ours", refusing(InvalidArgumentError("give a number")))
    drafters.register("bug", refusing(KeyError("missing")))
    drafters.register("short", lambda: None)
    drafters.register("text", "not a class")
    drafters.register("nothing", lambda *_: None)
    takes = r"its constructor, which takes \(argument, setup\)"
    for name, code, message in (
        ("mine:x", 2, "drafter 'mine' refuses its argument 'x': give a number"),
        ("ours", 2, "drafter 'ours' refuses its argument '': give a number"),
        ("bug", 1, f"drafter 'bug' failed in {takes}: KeyError: 'missing'"),
        ("short", 1, f"drafter 'short' failed in {takes}: TypeError: .* takes 0 positional arguments but 2 were given"),
        ("text", 1, f"drafter 'text' failed in {takes}: TypeError: 'str' object is not callable"),
        ("nothing", 1, "drafter 'nothing' must have properties views and takes_effort and a method draft"),
    ):
        with pytest.raises(InvalidArgumentError if code == 2 else PluginError, match=f"^{message}"):
            specdec.generate(MODEL, [1], drafter=name)
        ran = run(capsys, "generate", "--model", text_model, "--prompt", "hello", "--drafter", name)
        assert ran.code == code, ran.err
        assert ran.err.startswith("specdec: error: drafter '"), ran.err
        assert "Traceback" not in ran.err


def test_errors_of_views_name_the_view(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from synthetic import synthetic_source

    from specdec.store import Store, convert

    class Faulty(BucketView):
        name = "faulty"
        build = failing

        @staticmethod
        def tensors(*_: Any, **__: Any) -> Any:
            return BucketView.tensors(*_, **__)

    monkeypatch.setattr(views._views, "_own", {**views._views._own, "faulty": Faulty, "dud": failing})
    store = Store.open(convert(synthetic_source(), tmp_path / "store"))
    with pytest.raises(PluginError, match=f"^view 'faulty' failed in build: {DIVISION}"):
        store.draft("faulty", "head")
    with pytest.raises(PluginError, match=f"^view 'dud' failed in its constructor: {DIVISION}"):
        views.get_view("dud")
