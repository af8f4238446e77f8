"""Log-probabilities in answers: those of the model itself, token by token, streamed or whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME, Running, events, serving  # noqa: E402

import specdec  # noqa: E402

PROMPT = "Grüße an"


@pytest.fixture(scope="module")
def server(text_model: Path) -> Iterator[Running]:
    with serving(specdec.load(text_model, runtime="reference")) as running:
        yield running


def by_hand(server: Running, ids: list[int]) -> np.ndarray:
    """float64 (T, V): log-softmax of the model's logits behind every token."""
    logits = server.model.logits(ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def check(server: Running, rows: np.ndarray, tokens: list[int], entries: list[dict[str, Any]], *, top: int) -> None:
    """Entries in the form of chats are those of the tokens that the rows came before."""
    assert len(entries) == len(tokens)
    for row, token, entry in zip(rows, tokens, entries, strict=True):
        assert entry["logprob"] == pytest.approx(row[token], abs=1e-5)
        assert bytes(entry["bytes"]) == server.model.tokenizer.token_bytes(token)
        assert len(entry["top_logprobs"]) == top
        told = [one["logprob"] for one in entry["top_logprobs"]]
        assert told == pytest.approx(sorted(row, reverse=True)[:top], abs=1e-5)


@pytest.mark.parametrize("fields", [{}, {"policy": "fixed", "drafter": "effort"}, {"temperature": 0.9, "seed": 2}])
def test_of_chats(server: Running, client: Any, fields: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    options = {"temperature": 0.0, **{name: value for name, value in fields.items() if name in ("temperature", "seed")}}
    plain = specdec.generate(server.model, messages, max_tokens=12, speculate=False, **options)
    ids = server.model.tokenizer.encode(f"<|user|>{PROMPT}<|end|><|assistant|>")
    rows = by_hand(server, ids + plain.tokens)[len(ids) - 1 :]
    shown = plain.tokens[:-1] if plain.stopped_by == "end token" else plain.tokens
    asked = {"temperature": 0, **fields, "max_tokens": 12, "logprobs": True, "top_logprobs": 4}
    whole = server.chat(PROMPT, **asked).json()["choices"][0]
    check(server, rows[: len(shown)], shown, whole["logprobs"]["content"], top=4)
    streamed = [
        entry
        for chunk in events(server.chat(PROMPT, stream=True, **asked))
        for choice in chunk["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert streamed == whole["logprobs"]["content"]
    typed = client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=3, logprobs=True, temperature=0
    ).choices[0]
    assert all(entry.top_logprobs == [] for entry in typed.logprobs.content)


def test_without_asking_there_are_none(server: Running) -> None:
    assert server.chat(max_tokens=3).json()["choices"][0]["logprobs"] is None
    assert server.chat(max_tokens=3, logprobs=False).json()["choices"][0]["logprobs"] is None


def test_a_bias_changes_the_tokens_and_not_the_log_probabilities(server: Running) -> None:
    """They are those of the raw softmax, before masks and temperature."""
    token = 50
    answer = server.chat(
        PROMPT, max_tokens=2, temperature=0.7, logit_bias={str(token): 100}, logprobs=True, top_logprobs=2
    ).json()["choices"][0]
    ids = server.model.tokenizer.encode(f"<|user|>{PROMPT}<|end|><|assistant|>")
    rows = by_hand(server, [*ids, token])[len(ids) - 1 :]
    check(server, rows, [token, token], answer["logprobs"]["content"], top=2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_of_completions_with_echo(server: Running, stream: bool, max_tokens: int) -> None:
    """As `lm-eval` asks for them."""
    ids = server.model.tokenizer.encode(PROMPT)
    plain = specdec.generate(server.model, PROMPT, chat=False, speculate=False, max_tokens=max(1, max_tokens))
    tokens = ids + plain.tokens[:max_tokens]
    rows = by_hand(server, tokens)
    body = {"prompt": [ids], "echo": True, "logprobs": 2, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
    response = server.post("/v1/completions", body)
    parts = events(response) if stream else [response.json()]
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for part in parts:
        for choice in part["choices"]:
            for name in told:
                told[name] += (choice["logprobs"] or {}).get(name, [])
    if plain.stopped_by == "end token" and max_tokens:
        tokens.pop()
    assert len(told["tokens"]) == len(tokens)
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    for place in range(1, len(tokens)):
        row = rows[place - 1]
        assert told["token_logprobs"][place] == pytest.approx(row[tokens[place]], abs=1e-5)
        best = max(told["top_logprobs"][place].values())
        assert best == pytest.approx(row.max(), abs=1e-5)
    assert told["text_offset"] == sorted(told["text_offset"])
    assert told["tokens"][:4] == ["G", "r", "bytes:\\xc3", "bytes:\\xbc"]


def test_of_completions_without_echo(server: Running, client: Any) -> None:
    answer = client.completions.create(model=NAME, prompt="abc", max_tokens=4, temperature=0, logprobs=0)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 4
    assert all(math.isfinite(one) and one < 0 for one in logprobs.token_logprobs)
    assert logprobs.top_logprobs == [{}] * 4
    assert logprobs.text_offset[0] == 0
