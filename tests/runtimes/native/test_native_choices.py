"""Choices of the native runtime follow from the logits, whatever shares the pass and however many threads run; answers
by choices are those by logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

import specdec
from specdec.drafters.signals import LogitDistribution
from specdec.errors import InvalidArgumentError, ModelOutputError
from specdec.model.loaded import Model
from specdec.runtimes.base import Choice, Pass, Rows, forward_one, resolve_efforts
from specdec.store import Store, convert

native = pytest.importorskip("specdec.runtimes.native.runtime", reason="the native runtime is not built")

VOCAB = 9000  # several stretches of logits for several threads
PROMPT = [5, 9, 2, 40, 11, 5, 9, 77]
MODELS: dict[str, Callable[[], SyntheticSource]] = {
    "16 bits": lambda: SyntheticSource(tiny_config(vocab_size=VOCAB)),
    "q8_0": lambda: quantised_source(quantised_config(vocab_size=VOCAB), "q8_0"),
}
VIEWS = [("16 bits", "exact"), ("16 bits", "int4"), ("q8_0", "exact"), ("q8_0", "nested")]


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The runtime of a small random model with a number of threads, each made once."""

    @cache
    def store_of(model: str) -> Store:
        return Store.open(convert(MODELS[model](), tmp_path_factory.mktemp("stores") / "store", quantised="keep"))

    return cache(lambda model, threads=3: native.NativeRuntime(store_of(model), threads=threads))


def shown(runtime: Any, view: str, *, tokens: list[int] = PROMPT, head: bool = False, **options: Any) -> Pass:
    """A pass over some rows that follow a prompt."""
    held = runtime.new_cache(64)
    forward_one(runtime, PROMPT, held, logits="none")
    made = runtime.draft_head(tuple(range(3, VOCAB, 2))) if head else None
    if made is not None:
        made.add([2, 4, 8000, 16])
    rows = Rows(held, tokens, resolve_efforts(1.0, runtime.config), head=made, **options)
    return runtime.forward([rows], view=view)[0]


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_choices_sum_up_the_logits(runtime_of: Callable[..., Any], model: str, view: str, head: bool) -> None:
    runtime = runtime_of(model)
    logits = shown(runtime, view, head=head).logits
    found = shown(runtime, view, head=head, logits="choices", likely=6)
    assert found.logits.shape == (0, VOCAB)
    assert found.choices is not None
    assert len(found.choices) == len(found.likely) == len(PROMPT)
    for row, choice, likely in zip(logits, found.choices, found.likely, strict=True):
        wanted = LogitDistribution(row)
        assert choice.token == row.argmax()
        assert choice.highest == row.max()
        assert choice.margin == pytest.approx(wanted.margin, abs=1e-6)
        assert choice.entropy == pytest.approx(wanted.entropy, abs=2e-4)  # float32 sums of thousands of weights
        assert choice.top_probability == pytest.approx(wanted.top_probability, rel=1e-4)
        assert sorted(row[likely]) == sorted(np.sort(row)[-6:])
    assert shown(runtime, view, head=head, likely=6).likely == found.likely


@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_threads_and_other_rows_change_no_bit_of_a_choice(
    runtime_of: Callable[..., Any], model: str, view: str
) -> None:
    wanted = shown(runtime_of(model, 1), view, logits="choices", likely=4)
    for threads in (2, 3, 5):
        runtime = runtime_of(model, threads)
        alone = shown(runtime, view, logits="choices", likely=4)
        assert alone.choices == wanted.choices
        assert list(map(sorted, alone.likely)) == list(map(sorted, wanted.likely))
        single = shown(runtime, view, tokens=PROMPT[:1], logits="choices")
        assert single.choices == [wanted.choices[0]]
        efforts, batch = resolve_efforts(1.0, runtime.config), []
        for kind, tokens in (
            ("choices", PROMPT),
            ("all", [7, 8]),
            ("last", [1, 2, 3]),
            ("choices", [4]),
            ("none", [9]),
        ):
            held = runtime.new_cache(64)
            forward_one(runtime, PROMPT, held, logits="none")
            batch.append(Rows(held, tokens, efforts, logits=kind, likely=4 if kind == "choices" else 0))
        together = runtime.forward(batch, view=view)
        assert together[0].choices == wanted.choices
        assert [len(one.logits) for one in together] == [0, 2, 1, 0, 0]
        assert np.array_equal(together[1].logits, shown(runtime, view, tokens=[7, 8]).logits)
        assert together[3].choices == shown(runtime, view, tokens=[4], logits="choices").choices
        assert [len(one.likely) for one in together] == [len(PROMPT), 0, 0, 1, 0]


def test_a_pass_in_pieces_shows_choices_of_all_rows(runtime_of: Callable[..., Any]) -> None:
    runtime = runtime_of("16 bits")
    tokens = [int(token) for token in np.random.default_rng(0).integers(0, VOCAB, 600)]
    efforts = resolve_efforts(1.0, runtime.config)
    whole = runtime.forward([Rows(runtime.new_cache(600), tokens, efforts, logits="choices", likely=2)])[0]
    held = runtime.new_cache(600)
    parts = [runtime.forward([Rows(held, tokens[k : k + 200], efforts, logits="choices")])[0] for k in (0, 200, 400)]
    assert whole.choices == [choice for part in parts for choice in part.choices]
    assert len(whole.likely) == 600


def test_numbers_that_are_not_finite_are_chosen_and_refused(runtime_of: Callable[..., Any]) -> None:
    runtime = native.NativeRuntime(runtime_of("16 bits")._store, threads=3)
    runtime._model.load_vector("final_norm", np.full(runtime.config.hidden_size, np.nan, np.float32))
    found = shown(runtime, "exact", logits="choices", likely=3)
    assert found.choices is not None
    assert all(math.isnan(choice.highest) and math.isnan(choice.margin) for choice in found.choices)
    assert [choice.token for choice in found.choices] == [0] * len(PROMPT)
    assert found.likely == [[]] * len(PROMPT)
    with pytest.raises(ModelOutputError):
        specdec.generate(Model(runtime), PROMPT, max_tokens=4)


@pytest.mark.parametrize("model", MODELS)
def test_answers_by_choices_are_those_by_logits(runtime_of: Callable[..., Any], model: str) -> None:
    """Log-probabilities need logits, so passes show those in place of choices."""
    answers = []
    for threads in (1, 3):
        loaded = Model(runtime_of(model, threads))
        for options in ({}, {"logprobs": 2}):
            answers.append(specdec.generate(loaded, PROMPT, max_tokens=40, speculate=False, **options).tokens)
            for drafter in ("effort", "effort:head=64", "chain:ngram,effort:head=500"):
                found = specdec.generate(
                    loaded, PROMPT, max_tokens=40, policy="fixed:length=3", drafter=drafter, **options
                )
                answers.append(found.tokens)
                assert found.stats.drafted > 0
    assert all(tokens == answers[0] for tokens in answers)


def test_a_verify_pass_shows_no_logits_where_choices_will_do(
    runtime_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, kinds = runtime_of("16 bits"), list[tuple[str, str, int]]()
    forward = runtime.forward

    def noted(batch: Any, *, view: str = "exact", states: bool = False) -> list[Pass]:
        kinds.extend((view, rows.logits, rows.likely) for rows in batch if len(rows.tokens) < len(PROMPT) - 1)
        return forward(batch, view=view, states=states)

    monkeypatch.setattr(runtime, "forward", noted)
    specdec.generate(Model(runtime), PROMPT, max_tokens=12, policy="fixed:length=2", drafter="effort:head=64")
    assert {kind for _, kind, _ in kinds} == {"choices"}
    assert {likely for view, _, likely in kinds if view == "exact"} == {8}
    assert {likely for view, _, likely in kinds if view != "exact"} == {0}


def test_a_choice_is_asked_for_by_name(runtime_of: Callable[..., Any]) -> None:
    assert runtime_of("16 bits").info.chooses
    assert Choice(1, 2.0, 3.0, 0.5, 0.1).margin == 0.1
    with pytest.raises(InvalidArgumentError, match="logits must be"):
        shown(runtime_of("16 bits"), "exact", logits="some")


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_a_pass_goes_on_as_single_passes_would(
    runtime_of: Callable[..., Any], model: str, view: str, head: bool
) -> None:
    runtime = runtime_of(model)
    efforts = resolve_efforts(0.7, runtime.config)
    listed = runtime.draft_head(tuple(range(3, VOCAB, 2))) if head else None

    def cache(capacity: int = 64) -> Any:
        held = runtime.new_cache(capacity)
        forward_one(runtime, PROMPT, held, logits="none")
        return held

    held, token, single, read = cache(), 7, list[Choice](), 0
    for _ in range(9):
        one = runtime.forward([Rows(held, [token], efforts, logits="choices", head=listed)], view=view)[0]
        single, token, read = [*single, *one.choices], one.choices[0].token, read + one.bytes_read

    def going_on(ahead: int, room: int = 64, **options: Any) -> tuple[list[Choice], int]:
        held = cache(room)
        rows = Rows(held, [7], efforts, logits="choices", head=listed, ahead=ahead, **options)
        found = runtime.forward([rows], view=view)[0]
        assert held.length == len(PROMPT) + len(found.choices)
        if len(found.choices) == 9:
            assert found.bytes_read == read
        return found.choices, held.length

    for ahead in (1, 4, 8):
        assert going_on(ahead)[0] == single[: 1 + ahead]
    assert going_on(8, room=len(PROMPT) + 3)[0] == single[:3]
    assert (
        going_on(8, ends=frozenset({single[4].token}))[0]
        == single[: 1 + [one.token for one in single].index(single[4].token)]
    )
    least = sorted(one.margin for one in single)[3]
    unsure = next(place for place, one in enumerate(single) if one.margin < least)
    assert going_on(8, least_margin=least)[0] == single[: unsure + 1]
    assert (
        len(
            runtime.forward([Rows(cache(), [7], efforts, logits="choices", ahead=3), Rows(cache(), [8], efforts)])[
                0
            ].choices
        )
        == 1
    )


def test_drafts_made_at_once_are_those_made_one_by_one(
    runtime_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of("16 bits")
    asked, answers = list[int](), []
    forward = runtime.forward

    def noted(batch: Any, **options: Any) -> list[Pass]:
        asked.extend(rows.ahead for rows in batch)
        return forward(batch, **options)

    monkeypatch.setattr(runtime, "forward", noted)
    for ahead in (15, 2, 0):
        monkeypatch.setattr(runtime, "info", replace(runtime.info, drafts_ahead=ahead))
        asked.clear()
        found = specdec.generate(Model(runtime), PROMPT, max_tokens=30, policy="fixed:length=5", drafter="effort")
        answers.append((found.tokens, found.stats.drafted, found.stats.accepted, found.stats.by_effort))
        assert max(asked) == min(ahead, 4)
    assert answers[0] == answers[1] == answers[2]
