"""Windows of drafts: which steps attend to a part of the context, what is refused, and that no answer depends on it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from drafting import EveryStep, context_of, drafted, setup_of
from fake_runtime import FakeRuntime
from specdec.policies.fixed import FixedPolicy
from synthetic import SyntheticSource, tiny_config

import specdec
from specdec.drafters import window as windows
from specdec.drafters.base import LoadedModel
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.registry import create
from specdec.engine.drafter_guard import options_of
from specdec.engine.policy import DraftPlan, RoundState
from specdec.errors import InvalidArgumentError, PluginError
from specdec.model.loaded import Model
from specdec.runtimes.base import Rows, Window
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert

LENGTH = 300  # of a prompt: more than two blocks
PROMPT = [token * 5 % 41 for token in range(LENGTH)]


class Narrowing(FakeRuntime):
    """A runtime that takes windows, and notes them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.info = replace(self.info, narrows=True)
        self.seen: list[tuple[int, Window | None]] = []

    def forward(self, batch: Any, **options: Any) -> Any:
        self.seen += [(rows.cache.length, rows.window) for rows in batch]
        return super().forward([replace(rows, window=None) for rows in batch], **options)


def windows_of(spec: str, length: int, windowed: bool | None = None) -> list[Window | None]:
    """Windows of the steps of a draft after a text of that length."""
    runtime = Narrowing()
    drafter: Any = create(spec, setup_of(runtime))
    context = context_of(runtime, PROMPT[:length])
    runtime.seen.clear()
    plan = DraftPlan(num_draft_tokens=3, effort=0.7, windowed=windowed)
    drafted(drafter.draft(plan, context, policy=EveryStep()))
    return [window for _, window in runtime.seen]


def test_long_contexts_are_seen_in_part(monkeypatch):
    monkeypatch.setattr(windows, "LONG", 200)
    monkeypatch.setattr(windows, "RECENT", 30)
    usual = Window(windows.RECENT, windows.SINKS)
    assert windows_of("effort", 100) == [None] * 3
    assert windows_of("effort", 230) == [usual] * 3
    assert windows_of("effort", 200) == [None, usual, usual]  # the first step follows 199 tokens
    assert windows_of("effort", 289) == [Window(36, 4)] * 3  # an eighth of 288 to 290
    assert windows_of("effort:window=all", 250) == [None] * 3
    assert windows_of("effort:window=70", 100) == [Window(70, windows.SINKS)] * 3
    assert windows_of("early-exit:1,window=70,head=all", 100) == [Window(70, windows.SINKS)] * 3


def test_a_plan_may_choose_in_long_contexts(monkeypatch):
    monkeypatch.setattr(windows, "LONG", 200)
    monkeypatch.setattr(windows, "RECENT", 30)
    usual, other = Window(windows.RECENT, windows.SINKS), setup_of(Narrowing())
    for spec in ("effort", "early-exit:1", "chain:ngram,effort"):
        drafter: Any = create(spec, other)
        assert [option.windowed_from for option in options_of(spec, drafter)] == [200] * len(drafter.views)
    assert windows_of("effort", 230, windowed=True) == [usual] * 3
    assert windows_of("effort", 230, windowed=False) == windows_of("effort", 100, windowed=True) == [None] * 3
    for spec in ("effort:window=70", "effort:window=all", "ngram"):
        assert {option.windowed_from for option in options_of(spec, create(spec, other))} == {None}
    assert windows_of("effort:window=70", 230, windowed=False) == [Window(70, windows.SINKS)] * 3
    assert {option.windowed_from for option in options_of("effort", create("effort", setup_of(FakeRuntime())))} == {
        None
    }


class Boundless(NgramDrafter):
    """Its drafts may have a window in contexts of any length, it says."""

    windowed_from = 0


class Alternating(FixedPolicy):
    """Answers `choices` to the question whether drafts have a window, in turns."""

    choices: tuple[Any, ...] = (True, False)

    def plan(self, state: RoundState) -> DraftPlan:
        return replace(super().plan(state), windowed=self.choices[state.round_index % len(self.choices)])


def test_choices_that_are_none_are_refused():
    model = Model(Narrowing())
    with pytest.raises(PluginError, match="windowed_from must be None or a whole number of at least 1, not 0"):
        specdec.generate(model, [1], max_tokens=3, drafter=Boundless("", setup_of(FakeRuntime())))
    undecided = Alternating(length=2)
    undecided.choices = (30,)
    with pytest.raises(PluginError, match="windowed must be True, False or None, not 30"):
        specdec.generate(model, [1], max_tokens=3, policy=undecided)


@pytest.mark.parametrize("policy", ["auto", Alternating(length=2)], ids=["auto", "in turns"])
def test_answers_do_not_depend_on_the_choice(policy, monkeypatch, tmp_path):
    monkeypatch.setattr(windows, "LONG", 200)
    monkeypatch.setattr(windows, "RECENT", 30)
    model = Model(Narrowing())
    plain = specdec.generate(model, PROMPT, max_tokens=60, speculate=False)
    model.runtime.seen.clear()
    trace = tmp_path / "trace"
    found = specdec.generate(model, PROMPT, max_tokens=60, policy=policy, drafter="effort", trace=trace)
    assert found.tokens == plain.tokens
    if policy != "auto":
        lines = [json.loads(line) for line in trace.read_text().splitlines()]
        chosen = [line["windowed"] for line in lines if line["drafted"]]
        assert chosen == [number % 2 == 0 for number in range(len(chosen))]
        assert any(window for _, window in model.runtime.seen)


def test_another_models_drafts_see_a_part_of_its_context():
    runtime, other = FakeRuntime(), Narrowing(seed=9)
    tokenizer = setup_of(runtime).tokenizer
    setup = setup_of(runtime, load_model=lambda _: LoadedModel(other, tokenizer))
    drafter: Any = create("model:other,window=33", setup)
    drafted(
        drafter.draft(DraftPlan(num_draft_tokens=2, effort=0.7), context_of(runtime, PROMPT[:100]), policy=EveryStep())
    )
    assert other.seen == [(0, None), (99, Window(33, 4)), (100, Window(33, 4))]  # catching up sees everything


def test_a_window_is_refused_where_drafts_attend_to_everything():
    runtime = FakeRuntime()
    create("effort:window=auto", setup_of(runtime))
    create("effort:window=all", setup_of(runtime))
    for spec, message in (
        ("effort:window=5", "cannot take window=5: drafts of the fake runtime attend to all of the context"),
        ("effort:window=0", "needs a whole number from 1 to 1073741824 as window (or auto, or all), not '0'"),
        ("early-exit:1,window=few", "as window (or auto, or all), not 'few'"),
    ):
        with pytest.raises(InvalidArgumentError, match=re.escape(message)):
            create(spec, setup_of(runtime))


@pytest.fixture(scope="module", params=["native", "reference"])
def model(request, tmp_path_factory):
    """A small random model."""
    if request.param == "native":
        pytest.importorskip("specdec.runtimes.native.runtime", reason="the native runtime is not built")
    else:
        pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    path = tmp_path_factory.mktemp("stores") / "store"
    return Model(
        create_runtime(request.param, Store.open(convert(SyntheticSource(tiny_config(max_context=512)), path)))
    )


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_answers_do_not_depend_on_the_window(model, options):
    plain = specdec.generate(model, PROMPT, max_tokens=16, speculate=False, **options)
    seen: list[Rows] = []
    forward = model.runtime.forward
    model.runtime.forward = lambda batch, **more: (seen.extend(batch), forward(batch, **more))[1]
    try:
        for drafter in ("effort:window=20", "chain:ngram,effort:window=1", "effort:window=all"):
            found = specdec.generate(model, PROMPT, max_tokens=16, policy="fixed:length=2", drafter=drafter, **options)
            assert found.tokens == plain.tokens
    finally:
        model.runtime.forward = forward
    assert {rows.window for rows in seen} == {None, Window(20, 4), Window(1, 4)}
