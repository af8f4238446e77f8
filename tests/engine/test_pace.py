"""Sequences that share passes go ahead together, and ask their policies as often as that pays."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime

import specdec
from specdec.engine import ahead
from specdec.engine.ahead import Pace
from specdec.errors import ModelOutputError
from specdec.model.loaded import Model

PROMPTS = [list(b"the quick brown fox, the quick"), list(b"a lazy dog sleeps, a lazy"), list(b"one two one two one")]


def measured(turn_s: float = 0.001, most: int = 15) -> Pace:
    """A pace that knows what a plain turn takes."""
    pace = Pace(most)
    for turns in (1, 16, 16):
        pace.note(asked=False, turns=turns, seconds=turns * turn_s)
    return pace


def test_a_runtime_that_goes_no_further_is_always_asked() -> None:
    pace = Pace(0)
    for _ in range(5):
        pace.note(asked=True, turns=1, seconds=9.0)
        assert pace.asks
    assert pace.room(99) == 0


def test_asking_that_loses_takes_a_fiftieth_of_the_time_at_most() -> None:
    pace, asked_s, plain_s, gained = measured(), 0.0, 0.0, 0.0
    for _ in range(400):
        if pace.asks:
            pace.note(asked=True, turns=1.5, seconds=0.006)  # 4.5 turns lost
            asked_s, gained = asked_s + 0.006, gained + 1.5
        else:
            pace.note(asked=False, turns=16, seconds=0.016)
            plain_s, gained = plain_s + 0.016, gained + 16
    assert asked_s > 0
    assert gained * 0.001 >= 0.98 * (asked_s + plain_s) - 0.006


def test_asking_that_gains_goes_on_and_is_compared_anew_now_and_then() -> None:
    pace, rounds = measured(), []
    for _ in range(600):
        rounds.append(pace.asks)
        asked = pace.asks
        pace.note(asked=asked, turns=2.0 if asked else 16, seconds=0.0012 if asked else 0.016)
    assert 0.97 < np.mean(rounds) < 1


def test_asking_begins_again_when_it_pays_again() -> None:
    pace = measured()
    for pays in (False, True, False):
        rounds = []
        for _ in range(300):
            rounds.append(pace.asks)
            turns, seconds = (16.0, 0.016) if not pace.asks else (2.0, 0.001) if pays else (1.0, 0.004)
            pace.note(asked=pace.asks, turns=turns, seconds=seconds)
        assert (np.mean(rounds[100:]) > 0.9) == pays


@pytest.mark.parametrize(
    ("sequences", "turn_s", "waits"), [(4, 0.001, 0), (16, 0.002, 300), (64, 0.002, 512), (64, 0.1, 0)]
)
def test_asking_that_cannot_pay_is_put_off(sequences: int, turn_s: float, waits: int) -> None:
    pace, turns = Pace(15), 0
    while not pace.asks:
        step = 16 if pace.room(15) else 1
        pace.note(asked=False, turns=step, seconds=step * turn_s, sequences=sequences)
        turns += step
    assert waits <= turns <= waits + 18


def test_asking_that_cannot_pay_is_judged_by_what_it_costs_once_it_was_tried() -> None:
    pace = Pace(15)
    while not pace.asks:
        pace.note(asked=False, turns=16, seconds=0.016, sequences=16)
    for _ in range(9):
        pace.note(asked=True, turns=4.0, seconds=0.002, sequences=16)
        assert pace.asks


def test_a_pass_that_compiles_does_not_count() -> None:
    pace = Pace(15)
    assert not pace.asks
    assert pace.room(99) == 0
    pace.note(asked=False, turns=1, seconds=5.0)
    pace.note(asked=False, turns=16, seconds=0.016)
    assert pace.asks
    pace.note(asked=True, turns=1, seconds=0.5)
    assert pace.asks  # the first one may have looked through long texts
    pace.note(asked=True, turns=1, seconds=0.003)
    assert not pace.asks  # three turns for one
    assert pace.room(99) == 15


@pytest.mark.parametrize(("turn_s", "wanted"), [(0.001, 15), (0.005, 5), (0.05, 0)])
def test_a_pass_takes_no_longer_than_a_stream_may_wait(turn_s: float, wanted: int) -> None:
    assert measured(turn_s).room(99) == wanted
    assert measured(turn_s).room(2) == min(2, wanted)
    assert measured(turn_s, most=7).room(99) == min(7, wanted)


def model_of(most: int | None, **options: object) -> Model:
    return Model(FakeRuntime(seed=3, most_ahead=most), ByteTokenizer(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"speculate": False}, {}, {"policy": "fixed", "drafter": "ngram"}], ids=str)
def test_statistics_of_a_batch_add_up(options: dict[str, object]) -> None:
    wanted = [specdec.generate(model_of(None), one, max_tokens=50, speculate=False).tokens for one in PROMPTS]
    for found, tokens in zip(specdec.generate(model_of(15), PROMPTS, max_tokens=50, **options), wanted, strict=True):
        stats = found.stats
        assert found.tokens == tokens
        assert stats.emitted == 50
        assert stats.emitted + stats.cut == stats.accepted + stats.rounds
        assert sum(stats.rounds_by_accepted) == stats.rounds
        assert stats.verify_bytes_read > 0


def test_tokens_after_the_end_were_never_there() -> None:
    text = specdec.generate(model_of(None), PROMPTS[0], max_tokens=60, speculate=False).tokens
    end = text[40]
    first = text.index(end)
    model = model_of(15)
    with specdec.Batch(model) as batch:
        done = batch.submit(PROMPTS[0], max_tokens=60, speculate=False, stop_token_ids=[end])
        pieces = list(done)
        result = done.result()
        assert result.tokens == text[: first + 1]
        assert [token for piece in pieces for token in piece.tokens] == result.tokens
        assert all(len(piece.tokens) == len(piece.parts) == len(piece.origins) for piece in pieces)
        assert result.stats.rounds == result.stats.plain_rounds == first + 1
        again = batch.submit([*PROMPTS[0], *text], max_tokens=5, speculate=False)
        list(again)
        assert again.result().stats.cached_prompt_tokens == len(PROMPTS[0]) + first


def test_a_trace_has_a_line_for_every_step(tmp_path) -> None:
    path = tmp_path / "trace.jsonl"
    with specdec.Batch(model_of(15)) as batch:
        done = batch.submit(PROMPTS[0], max_tokens=40, speculate=False, trace=path)
        list(done)
        result = done.result()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(40))
    assert [line["position"] for line in lines] == list(range(len(PROMPTS[0]), len(PROMPTS[0]) + 40))
    assert [line["bonus_token"] for line in lines] == result.tokens
    assert all(line["emitted"] == len(line["parts"]) == len(line["producers"]) == 1 for line in lines)


def test_what_means_nothing_ends_its_answer_alone(monkeypatch) -> None:
    forward = FakeRuntime.forward

    def broken(self: FakeRuntime, batch: list[specdec.Rows], **options: object) -> list[object]:  # type: ignore[name-defined]
        made = forward(self, batch, **options)  # type: ignore[arg-type]
        for rows, one in zip(batch, made, strict=True):
            if one.choices and len(one.choices) > 5 and rows.cache.capacity == len(PROMPTS[1]) + 40:
                spoilt = [*one.choices]
                spoilt[4] = spoilt[4]._replace(highest=float("nan"))
                object.__setattr__(one, "choices", spoilt)
        return made

    wanted = specdec.generate(model_of(None), PROMPTS[1], max_tokens=40, speculate=False).tokens
    monkeypatch.setattr(ahead, "_MOST_S", 1e6)  # a busy machine goes ahead as far as any
    monkeypatch.setattr(FakeRuntime, "forward", broken)
    with specdec.Batch(model_of(15)) as batch:
        asked = [batch.submit(one, max_tokens=40, speculate=False) for one in PROMPTS]
        for number, one in enumerate(asked):
            if number == 1:
                with pytest.raises(ModelOutputError, match="not finite"):
                    list(one)
                tokens = one.result().tokens
                assert tokens == wanted[: len(tokens)]
                assert 4 < len(tokens) < 15
            else:
                assert sum(len(piece.tokens) for piece in one) == 40
