"""Log-probabilities: the raw log-softmax of the model's logits, of answers and prompts; and seeds that are reported."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config, fake_model
from scipy.special import log_softmax

import specdec
from specdec.engine.logprobs import TokenLogprob, token_logprob
from specdec.errors import InvalidArgumentError, OptionError
from specdec.model.loaded import Model

ENDLESS = ByteTokenizer(eos=frozenset())


def assert_right(found: list[TokenLogprob | None], rows: np.ndarray, tokens: list[int], count: int) -> None:
    wanted = log_softmax(rows.astype(np.float64), axis=1)
    for one, row, token in zip(found, wanted, tokens, strict=True):
        assert one is not None
        assert one.token == token
        assert one.logprob == pytest.approx(row[token], abs=1e-5)
        order = np.argsort(-row, kind="stable")[:count]
        assert [top.token for top in one.top] == order.tolist()
        assert [top.logprob for top in one.top] == pytest.approx(row[order].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"speculate": False},
        {"policy": "fixed", "draft_effort": 0.7},
        {"drafter": "ngram:min=1", "policy": "fixed"},
        {"temperature": 1.5, "seed": 3, "top_k": 9},
        {"logit_bias": {5: 20, 6: -100}, "repetition_penalty": 1.5, "temperature": 0.5, "seed": 1},
    ],
)
def test_of_an_answer(options: dict[str, Any]) -> None:
    model, prompt = fake_model(tokenizer=ENDLESS), [1, 2, 1, 2]
    with specdec.stream(model, prompt, max_tokens=30, logprobs=4, **options) as generation:
        pieces = list(generation)
    result = generation.result()
    rows = model.logits([*prompt, *result.tokens])[len(prompt) - 1 : -1]
    assert_right(result.logprobs, rows, result.tokens, 4)
    assert [one for piece in pieces for one in piece.logprobs] == result.logprobs
    assert all(len(piece.logprobs) == len(piece.tokens) for piece in pieces)


def test_they_end_with_the_answer() -> None:
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset(range(0, 258, 5))), seed=2)
    result = specdec.generate(model, [1], max_tokens=50, logprobs=0, policy="fixed", draft_effort=1.0, draft_len=8)
    assert result.stopped_by == "end token"
    assert result.stats.cut
    assert len(result.logprobs) == len(result.tokens)
    assert all(one.top == () for one in result.logprobs)


@pytest.mark.parametrize("max_tokens", [0, 1, 9])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
def test_of_a_prompt(length: int, max_tokens: int) -> None:
    model = Model(FakeRuntime(fake_config()), ENDLESS)
    model.prompt_cache = specdec.PromptCache()
    prompt = [(7 * i) % 250 for i in range(length)]
    specdec.generate(model, prompt, max_tokens=2)  # the cache knows the prompt
    result = specdec.generate(model, prompt, max_tokens=max_tokens, prompt_logprobs=2, logprobs=1)
    assert result.prompt_logprobs[0] is None
    assert_right(result.prompt_logprobs[1:], model.logits(prompt)[:-1], prompt[1:], 2)
    assert len(result.tokens) == len(result.logprobs) == max_tokens
    assert result.tokens == (specdec.generate(model, prompt, max_tokens=max_tokens).tokens if max_tokens else [])
    assert (result.finish_reason, result.stopped_by) == ("length", "max_tokens")


def test_of_prompts_that_are_read_together() -> None:
    model = fake_model(tokenizer=ENDLESS)
    prompts = [[1], [5, 6, 7] * 30, [9, 9]]
    for max_tokens in (0, 3):
        together = specdec.generate(model, prompts, max_tokens=max_tokens, prompt_logprobs=1)
        alone = [specdec.generate(model, one, max_tokens=max_tokens, prompt_logprobs=1) for one in prompts]
        assert [one.prompt_logprobs for one in together] == [one.prompt_logprobs for one in alone]
        assert [one.tokens for one in together] == [one.tokens for one in alone]
    with specdec.Batch(model) as batch:
        asked = [batch.submit(one, max_tokens=0, prompt_logprobs=0) for one in prompts]
        for generation, prompt in zip(asked, prompts, strict=True):
            assert [piece.tokens for piece in generation] == [[]]
            assert len(generation.result().prompt_logprobs) == len(prompt)


def test_nobody_pays_who_does_not_ask() -> None:
    result = specdec.generate(fake_model(), [1, 2], max_tokens=4)
    assert (result.logprobs, result.prompt_logprobs) == (None, None)
    assert not {"logprobs", "prompt_logprobs"} & set(result.to_dict())


def test_in_json() -> None:
    result = specdec.generate(fake_model(tokenizer=ENDLESS), [1, 2], max_tokens=1, logprobs=1, prompt_logprobs=1)
    values = json.loads(json.dumps(result.to_dict()))
    one = result.logprobs[0]
    top = [{"token": one.top[0].token, "logprob": one.top[0].logprob}]
    assert values["logprobs"] == [{"token": one.token, "logprob": one.logprob, "top": top}]
    assert values["prompt_logprobs"][0] is None
    assert values["prompt_logprobs"][1]["token"] == 2


def test_equal_logits_keep_the_lower_id_first_and_large_ones_stay_finite() -> None:
    logits = np.full(700, 3e38, np.float32)
    found = token_logprob(logits, 600, 20)
    assert [one.token for one in found.top] == list(range(20))
    assert found.logprob == pytest.approx(-np.log(700))


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("value", [-1, 21, 1.5, True, "3"])
def test_numbers_out_of_range(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"{name} must be a whole number from 0 to 20"):
        specdec.generate(fake_model(), [1], **{name: value})


def test_no_tokens_only_for_a_prompts_own() -> None:
    with pytest.raises(InvalidArgumentError, match="max_tokens must be a whole number of at least 1, not 0"):
        specdec.generate(fake_model(), [1], max_tokens=0, logprobs=1)


def test_a_seed_is_drawn_and_reported() -> None:
    model = fake_model(tokenizer=ENDLESS)
    options = {"max_tokens": 12, "temperature": 1.0}
    first, second = (specdec.generate(model, [1], **options) for _ in range(2))
    assert first.seed != second.seed
    assert first.tokens != second.tokens
    assert first.seed == first.stats.seed == first.to_dict()["seed"] == first.to_dict()["stats"]["seed"]
    again = specdec.generate(model, [1], seed=first.seed, speculate=False, **options)
    assert (again.tokens, again.seed) == (first.tokens, first.seed)
    many = specdec.generate(model, [[1], [1]], **options)
    assert many[0].seed != many[1].seed


def test_greedy_decoding_needs_no_seed() -> None:
    assert specdec.generate(fake_model(), [1], max_tokens=2).seed is None
    assert specdec.generate(fake_model(), [1], max_tokens=2, seed=5).seed == 5
