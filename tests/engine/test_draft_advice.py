"""A draft effort that hardly ever agrees is named in the statistics; the view that "auto" is at a named effort."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_runtime import ByteTokenizer, fake_model

import specdec
from specdec.engine.advice import advice_on_effort
from specdec.engine.stats import Stats
from specdec.runtimes.base import RuntimeInfo


def stats_of(view: str, checked: int, accepted: int) -> Stats:
    return Stats(by_step={f"effort {view} 0.15": {"drafted": [20], "checked": [checked], "accepted": [accepted]}})


def test_advice_names_the_effort_and_what_works() -> None:
    said = advice_on_effort(stats_of("int4", 13, 1), 0.15, ("nested", 0.7))
    assert said == (
        "draft effort 0.15 in view int4 agreed at 1 of 13 tokens, too few to gain from: leave the draft effort out, or "
        "draft from view nested at 0.7"
    )


@pytest.mark.parametrize(
    ("checked", "accepted", "effort"),
    [(7, 0, 0.15), (30, 10, 0.15), (13, 1, 0.7), (0, 0, 0.15)],
)
def test_no_advice_without_reason(checked: int, accepted: int, effort: float) -> None:
    assert not advice_on_effort(stats_of("int4", checked, accepted), effort, ("nested", 0.7))


def test_lookups_do_not_count() -> None:
    stats = Stats(by_step={"ngram": {"drafted": [20], "checked": [20], "accepted": [0]}})
    assert not advice_on_effort(stats, 0.15, ("int4", 0.7))


def test_an_answer_has_advice_only_where_an_effort_was_named() -> None:
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    options: dict[str, Any] = {"max_tokens": 40, "policy": "fixed", "draft_len": 4}
    stats = specdec.generate(model, [1, 2, 3], **options).stats
    assert stats.to_dict()["advice"] == stats.advice == ""


def test_the_view_at_a_named_effort() -> None:
    info = RuntimeInfo(name="x", auto_draft=("int4", 0.7), agreeing=((0.2, "bucket"), (0.4, "bucket8")))
    assert [info.view_at(effort) for effort in (0.1, 0.2, 0.3, 0.5, 1.0)] == [
        "bucket",
        "bucket",
        "bucket8",
        "int4",
        "int4",
    ]


def test_auto_takes_the_view_of_a_named_effort() -> None:
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    model.runtime.info = replace(model.runtime.info, agreeing=((0.3, "bucket"),))
    options: dict[str, Any] = {"max_tokens": 20, "policy": "fixed", "drafter": "effort", "draft_view": "auto"}
    views = {
        effort: specdec.generate(model, [1, 2, 3], draft_effort=effort, **options).stats.draft_view
        for effort in (0.2, 0.6, None)
    }
    assert views[0.2] == "bucket"
    assert views[0.6] == views[None] == model.runtime.info.auto_draft[0]
