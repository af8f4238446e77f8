"""Tokens that end an answer: the model's own, the caller's, and none at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import specdec
from specdec.errors import InvalidArgumentError

LIKELY = 100.0  # a bias that makes a token come first


@pytest.fixture(scope="module")
def model(text_model: Path) -> specdec.Model:
    return specdec.load(text_model, runtime="reference")


def end_of(model: specdec.Model) -> int:
    assert model.tokenizer is not None
    return min(model.tokenizer.eos_ids)


@pytest.mark.parametrize("speculate", [True, False])
def test_an_answer_ends_at_a_token_of_the_callers(model: specdec.Model, speculate: bool) -> None:
    whole = specdec.generate(model, "hello", max_tokens=12, speculate=False)
    token = whole.tokens[5]
    cut = whole.tokens[: whole.tokens.index(token) + 1]
    result = specdec.generate(model, "hello", max_tokens=12, stop_token_ids=[token], speculate=speculate)
    assert result.tokens == cut
    assert (result.stopped_by, result.finish_reason) == ("end token", "stop")


@pytest.mark.parametrize("speculate", [True, False])
def test_an_answer_goes_on_after_the_models_end(model: specdec.Model, speculate: bool) -> None:
    end = end_of(model)
    asked = {"max_tokens": 6, "logit_bias": {end: LIKELY}, "speculate": speculate}
    assert specdec.generate(model, "hello", **asked).tokens == [end]
    result = specdec.generate(model, "hello", ignore_eos=True, **asked)
    assert result.tokens == [end] * 6
    assert (result.text, result.finish_reason) == ("", "length")
    both = specdec.generate(model, "hello", ignore_eos=True, stop_token_ids=[end], **asked)
    assert both.tokens == [end]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_token_ids": [-1]}, "stop_token_ids must be token ids, whole numbers of at least 0, not -1"),
        ({"stop_token_ids": "7"}, "stop_token_ids must be a sequence of token ids, not '7'"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids must be token ids from 0 to"),
        ({"ignore_eos": True, "regex": "a+"}, "ignore_eos cannot be combined with a grammar"),
    ],
)
def test_what_cannot_be_is_refused(model: specdec.Model, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        specdec.generate(model, "hello", **options)
