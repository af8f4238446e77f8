"""Requests that nobody would send on purpose: never a status of 500 or above, never a traceback."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs the extra `test`")

from http_server import Running, serving

import specdec
from specdec.errors import InvalidArgumentError

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}
SAMPLING = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": ["a"], "max_tokens": 3,
    "n": 2, "stream": False, "draft_effort": 0.5, "policy": "fixed", "drafter": "ngram", "speculate": True,
    "verify_effort": 1.0, "token_origins": True, "user": "me", "metadata": {"a": "b"},
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "5"},
        ],
        "tools": [TOOL],
        "tool_choice": "auto",
        "stream_options": None,
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"a": 1},
        "max_completion_tokens": 3,
        **SAMPLING,
    },
    "/v1/completions": {"model": "tiny", "prompt": ["Hi", "Ho"], "echo": True, **SAMPLING},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 3,
        "system": [{"type": "text", "text": "Be short."}],
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "5"}]},
        ],
        "tools": [{"name": "f", "description": "g", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "none"},
        "thinking": {"type": "enabled", "budget_tokens": 2},
        "output_config": {"effort": "low"},
        "stop_sequences": ["a"],
        "metadata": {"user_id": "me"},
        "temperature": 0.5,
        "stream": False,
    },
    "/v1/messages/count_tokens": {
        "model": "tiny",
        "system": "Be short.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    },
    "/v1/responses": {
        "model": "tiny",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "b"}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "5"},
        ],
        "instructions": "Be short.",
        "max_output_tokens": 3,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
        "tool_choice": "none",
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "metadata": {"a": "b"},
        "previous_response_id": None,
        "store": True,
        "stream": False,
        "temperature": 0.5,
        "top_p": 0.9,
    },
    "/tokenize": {"prompt": "Hi", "add_special_tokens": True, "return_token_strs": True},
    "/detokenize": {"tokens": [1, 2, 3]},
}
# Written as JSON, since not all of them are values.
ODD = (
    "null", "true", "false", "0", "-1", "1", "1e308", "-1e308", "1e999", "-0.0", "0.1", "NaN", "Infinity", "-Infinity",
    "9223372036854775807", "18446744073709551616", "9" * 400, '""', '"a"', '"\\u0000"', '"\\ud800"', '"\\udc00x"',
    '"' + "x" * 3000 + '"', "[]", "{}", "[[]]", "[null]", "[1]", '["a", 1]', '{"a": 1, "a": 2}', '{"type": 5}',
    "[" * 100 + "]" * 100, '{"a":' * 100 + "1" + "}" * 100, "[" * 100000, '{"":""}', '"<|end|>"', '"🦀é\\ud83e\\udd80"',
)  # fmt: skip


def written(value: Any, odd: str) -> str:
    """JSON in which the placeholder is `odd`."""
    return json.dumps(value).replace('"\\u0001odd"', odd)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """A path, and a body that was valid once."""
    path = rng.choice(sorted(REQUESTS))
    value: Any = copy.deepcopy(REQUESTS[path])
    for name in [name for name in value if name not in ("messages", "prompt", "tokens") and rng.random() < 0.3]:
        del value[name]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(value))
        if not found:
            break
        *outer, last = rng.choice(found)
        holder = value
        for key in outer:
            holder = holder[key]
        action = rng.random()
        if action < 0.7:
            holder[last] = "\x01odd"
        elif action < 0.85 and isinstance(holder, dict):
            holder[rng.choice(("extra", "", "stream", "n", "logprobs", "messages"))] = "\x01odd"
        else:
            del holder[last]
    body = written(value, rng.choice(ODD)).encode()
    if rng.random() < 0.15:  # damage of the text itself
        cut = rng.randrange(len(body))
        noise = bytes(rng.randrange(256) for _ in range(rng.randrange(4)))
        body = body[:cut] + noise + body[cut + rng.randrange(4) :]
    return path, body


@pytest.fixture(scope="module")
def server(text_model: Path) -> Iterator[Running]:
    with serving(specdec.load(text_model, runtime="reference")) as running:
        yield running


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_odd_requests_are_refused_or_answered(server: Running, caplog: pytest.LogCaptureFixture, count: int) -> None:
    rng, statuses = random.Random(count), dict[int, int]()
    with server.client() as client, caplog.at_level(logging.WARNING):
        for number in range(count):
            path, body = mutated(rng)
            response = client.post(path, content=body)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code < 500, (number, path, body[:2000], response.text)
            if response.status_code >= 400:
                assert response.json()["error"]["message"], (number, path, body[:2000])
            streamed = response.headers["content-type"].startswith("text/event-stream")
            assert not streamed or '{"error":' not in response.text, (number, path, body[:2000], response.text)
    assert [record for record in caplog.records if record.exc_info] == []
    assert statuses[200] > count // 20  # the mutations leave something to answer
    assert statuses[400] > count // 2
    assert server.chat(max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"5", b"null", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{'a': 1}", b'{"a": NaN}', b'{"a": 1e400}'],
)
def test_bodies_that_are_not_an_object(server: Running, body: bytes) -> None:
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_what_is_wrong_with_a_body_is_said(server: Running) -> None:
    for text, told in (
        ('{"temperature": NaN}', "holds NaN"),
        ('{"temperature": 1e999}', "too large"),
        ('{"model": "a", "model": "b"}', "'model' twice"),
        ('{"seed": ' + "9" * 40 + "}", "more than 64 bits"),
        ('{"model": "\\ud800"}', "surrogate"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested"),
    ):
        error = server.post("/v1/chat/completions", text.encode()).json()["error"]
        assert told in error["message"]
        assert error["code"] == "invalid_json"


def test_a_request_cannot_name_a_file(server: Running, tmp_path: Path) -> None:
    """The command line may: there it is the operator who asks."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy: fixed\n", encoding="utf-8")
    prompt = [{"role": "user", "content": "Hi"}]
    assert specdec.generate(server.model, prompt, policy=str(policy), max_tokens=1).tokens
    for field, value in (("policy", str(policy)), ("drafter", f"ngram:{policy}"), ("drafter", f"replay:{policy}")):
        response = server.chat(max_tokens=1, **{field: value})
        assert response.status_code == 400
        assert "must be one of" in response.json()["error"]["message"]
    with pytest.raises(InvalidArgumentError):
        specdec.generate(server.model, prompt, policy=str(tmp_path / "none.yaml"), max_tokens=1)
