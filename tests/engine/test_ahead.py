"""Greedy decoding by the runtime's own choices, several tokens a pass: the same tokens, fewer passes, no logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime

import specdec
from specdec.errors import InvalidArgumentError, ModelOutputError
from specdec.model.effort import resolve_efforts
from specdec.model.loaded import Model
from specdec.runtimes.base import Rows
from specdec.runtimes.checks import check_batch

PROMPT = list(b"the quick brown fox, the quick brown dog, the quick")


def model_of(
    most_ahead: int | None, *, seed: int = 3, sharpness: float = 3.0, eos: frozenset[int] = frozenset()
) -> Model:
    runtime = FakeRuntime(seed=seed, sharpness=sharpness, most_ahead=most_ahead)
    return Model(runtime, ByteTokenizer(eos=eos))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"speculate": False},
        {},
        {"policy": "fixed", "drafter": "effort", "draft_len": 3},
        {"policy": "fixed", "drafter": "ngram"},
        {"policy": "fixed", "drafter": "recycle"},
        {"policy": "fixed", "drafter": "chain:ngram,effort"},
    ],
    ids=str,
)
def test_choices_give_the_tokens_that_logits_give(options, seed):
    wanted = specdec.generate(model_of(None, seed=seed), PROMPT, max_tokens=70, speculate=False)
    for most in (None, 0, 1, 15):
        found = specdec.generate(model_of(most, seed=seed), PROMPT, max_tokens=70, **options)
        assert found.tokens == wanted.tokens
        assert found.stats.emitted == 70


def test_rounds_and_trusted_tokens_are_those_of_logits():
    for options in ({"drafter": "effort", "draft_len": 3}, {"drafter": "effort", "trust": 0.5}):
        wanted = specdec.generate(model_of(None), PROMPT, max_tokens=70, policy="fixed", **options)
        found = specdec.generate(model_of(15), PROMPT, max_tokens=70, policy="fixed", **options)
        assert found.tokens == wanted.tokens
        assert found.stats.rounds == wanted.stats.rounds
        assert found.stats.trusted == wanted.stats.trusted


def test_plain_decoding_goes_ahead_and_shows_no_logits(shown):
    result = specdec.generate(model_of(7), PROMPT, max_tokens=64, speculate=False)
    rounds = [rows for rows in shown if rows.logits != "none"]
    assert {rows.logits for rows in rounds} == {"choices"}
    assert len(rounds) < 16
    assert rounds[0].ahead == 0  # the first token comes alone
    assert max(rows.ahead for rows in rounds) == 7
    assert result.stats.rounds == 64
    assert math.isclose(result.stats.verify_s, result.stats.decode_s, rel_tol=0.9)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7, "seed": 5}, {"logprobs": 2}, {"logit_bias": {65: 3.0}}, {"repetition_penalty": 1.2}],
    ids=str,
)
def test_what_needs_logits_gets_them(shown, options):
    wanted = specdec.generate(model_of(None), PROMPT, max_tokens=40, **options)
    del shown[:]
    found = specdec.generate(model_of(15), PROMPT, max_tokens=40, speculate=False, **options)
    assert found.tokens == wanted.tokens
    assert "choices" not in {rows.logits for rows in shown}
    assert not any(rows.ahead for rows in shown)


def test_it_goes_no_further_than_an_end_token_and_the_limit(shown):
    text = specdec.generate(model_of(None), PROMPT, max_tokens=60, speculate=False).tokens
    end = text[40]
    first = text.index(end)
    found = specdec.generate(model_of(15), PROMPT, max_tokens=60, speculate=False, stop_token_ids=[end])
    assert found.tokens == text[: first + 1]
    assert all(end in rows.ends for rows in shown if rows.ahead)
    limit = len(PROMPT) + 60
    for rows in shown:
        assert rows.cache.capacity == limit
    exact = specdec.generate(model_of(15), PROMPT, max_tokens=23, speculate=False)
    assert exact.tokens == text[:23]


def test_answers_that_end_early_leave_the_cache_as_it_should_be():
    model = model_of(15)
    model.prompt_cache = specdec.PromptCache()
    wanted = specdec.generate(model_of(None), PROMPT, max_tokens=50, speculate=False).tokens
    with specdec.stream(model, PROMPT, max_tokens=50, speculate=False) as answer:
        taken = [next(iter(answer)).tokens[0] for _ in range(9)]
    assert taken == wanted[:9]
    again = specdec.generate(model, [*PROMPT, *wanted[:30]], max_tokens=20, speculate=False)
    assert again.tokens == wanted[30:50]
    assert again.stats.cached_prompt_tokens == len(PROMPT) + 8


@pytest.mark.parametrize("options", [{"speculate": False}, {}], ids=str)
def test_a_batch_goes_ahead_together_and_equals_its_parts(shown, options):
    prompts = [PROMPT, PROMPT[:20], PROMPT[5:33]]
    wanted = [specdec.generate(model_of(None), one, max_tokens=45, **options).tokens for one in prompts]
    del shown[:]
    found = specdec.generate(model_of(15), prompts, max_tokens=45, **options)
    assert [one.tokens for one in found] == wanted
    assert options or max(rows.ahead for rows in shown) > 3


def test_output_that_means_nothing_ends_the_answer(monkeypatch):
    row = FakeRuntime._row
    calls = 0

    def broken(self: FakeRuntime, *given: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        logits = row(self, *given)
        if calls > 12:
            logits[7] = np.nan
        return logits

    monkeypatch.setattr(FakeRuntime, "_row", broken)
    answer = specdec.stream(model_of(15), PROMPT, max_tokens=40, speculate=False)
    tokens = [token for _ in range(12) for token in next(answer).tokens]
    with pytest.raises(ModelOutputError, match="not finite"):
        next(answer)
    assert len(tokens) == 12


def test_what_no_runtime_does_is_refused():
    runtime = FakeRuntime(most_ahead=4)
    efforts = resolve_efforts(1.0, runtime.config)
    cache = runtime.new_cache(20)
    for rows, chooses in (
        (Rows(cache, [1], efforts, logits="choices"), False),
        (Rows(cache, [1, 2], efforts, logits="choices", ahead=2), True),
        (Rows(cache, [1], efforts, logits="all", ahead=2), True),
        (Rows(cache, [1], efforts, logits="choices", ahead=-1), True),
    ):
        with pytest.raises(InvalidArgumentError, match="choices"):
            check_batch([rows], runtime.config, type(cache), chooses=chooses)
