"""Gemma 3 270M against transformers, its tokens and its log-probabilities, inside its window of 512 and past it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from models import real_model_path
from places import DATA

import specdec
from specdec.runtimes.choose import known_runtimes

NAME = "gemma-3-270m"
GOLDEN: dict[str, Any] = json.loads((DATA / f"golden_logits-{NAME}.json").read_text())
ROWS: list[dict[str, Any]] = GOLDEN["rows"]
GAP, BOUND = 0.05, 0.05  # of log-probabilities: where the likeliest token must be equal, and how near values must be


@cache
def loaded(runtime: str) -> specdec.Model:
    """The model on a runtime that runs here."""
    try:
        return specdec.load(real_model_path(NAME), runtime=runtime)
    except specdec.SpecdecError as error:
        pytest.skip(f"runtime {runtime}: {error}")


def test_one_row_is_longer_than_the_window() -> None:
    assert max(len(row["prompt_ids"]) for row in ROWS) > 3 * 512


@pytest.mark.model
def test_tokens() -> None:
    tokenizer = loaded("reference").tokenizer
    assert tokenizer is not None
    assert tokenizer.vocab_size == 262_144
    for row in ROWS:
        assert tokenizer.encode(row["prompt"]) == row["prompt_ids"]
        assert tokenizer.decode(row["prompt_ids"], skip_special=True) == row["prompt"]


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("runtime", [name for name in known_runtimes() if name != "mlx"])
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_log_probabilities(runtime: str, number: int) -> None:
    model, row = loaded(runtime), ROWS[number]
    prompt, greedy = row["prompt_ids"], row["greedy_ids"]
    logits = model.logits([*prompt, *greedy[:-1]])[len(prompt) - 1 :].astype(np.float64)
    logprobs = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    for step, top in enumerate(row["top5"]):
        for token, expected in top:
            assert abs(logprobs[step, token] - expected) < BOUND, (step, token)
        if top[0][1] - top[1][1] > GAP:
            assert int(logits[step].argmax()) == top[0][0], step


@pytest.mark.model
@pytest.mark.slow
def test_speculation_gives_the_same_tokens() -> None:
    model = loaded("auto")
    for row in ROWS[:2] + ROWS[-1:]:
        plain = specdec.generate(model, row["prompt_ids"], max_tokens=24, speculate=False)
        assert specdec.generate(model, row["prompt_ids"], max_tokens=24).tokens == plain.tokens
