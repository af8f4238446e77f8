"""`/v1/messages`: requests that are refused, and answers that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME  # noqa: E402
from responses_api import sse  # noqa: E402
from scripted_chat import Scripted, finished, scripted  # noqa: E402

from specdec.server.errors import ApiError  # noqa: E402
from specdec.server.events import TextDelta  # noqa: E402

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(server: Scripted) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def body(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "max_tokens": 50, "messages": HELLO, **fields}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [3]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "images are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "container_upload"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]}, "source"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}]}, "input"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": 1, "input": {}}]}]},
            "name",
        ),
        ({"messages": [{"role": "assistant", "content": ""}]}, "messages"),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"tools": {}}, "tools"),
        ({"tools": [3]}, "tools.0"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema"),
        ({"tools": [{**WEATHER, "name": "a b"}]}, "name"),
        ({"tools": [{**WEATHER, "name": ["a"]}]}, "name"),
        ({"tools": [{**WEATHER, "description": 3}]}, "description"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": 9}, "temperature"),
        ({"top_p": True}, "top_p"),
        ({"stream": "yes"}, "stream"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": []}, "thinking"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config.format.type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "a"}, "container"),
        ({"stop": ["a"]}, "stop"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_named(server: Scripted, fields: dict[str, Any], named: str) -> None:
    server.script.set(TextDelta("a"), finished())
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        if path.endswith("count_tokens") and "max_tokens" in fields and fields["max_tokens"] is None:
            continue
        response = server.post(path, body(**fields))
        assert response.status_code == 400, response.text
        error = response.json()
        assert error["type"] == "error"
        assert error["error"]["type"] == "invalid_request_error"
        assert named in error["error"]["message"]
        assert error["error"]["message"].isprintable()


def test_another_model_is_not_found(server: Scripted, client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**body(model="claude"))
    assert caught.value.body["error"]["type"] == "not_found_error"


def test_bodies_that_are_not_objects(server: Scripted) -> None:
    for content in (b"", b"[]", b"{", b"\xff", b"3", b'{"model": NaN}'):
        response = server.post("/v1/messages", content)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_errors_before_and_in_an_answer(server: Scripted, client: Any) -> None:
    busy = ApiError(429, "the queue is full", code="queue_full", headers={"Retry-After": "3"})
    server.script.set(error=busy)
    for stream in (False, True):
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**body(stream=stream))
        assert caught.value.body["error"] == {"type": "rate_limit_error", "message": "the queue is full"}
        assert caught.value.response.headers["retry-after"] == "3"
    server.script.set(TextDelta("a"), error=ValueError("secret"))
    *_, last = sse(server.post("/v1/messages", body(stream=True)).text)
    assert last["type"] == "error"
    assert last["error"]["type"] == "api_error"
    assert "secret" not in last["error"]["message"]
    response = server.post("/v1/messages", body())
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "api_error"


def test_keys_come_in_either_header(tmp_path: Path) -> None:
    with scripted(tmp_path / "text", api_keys=("secret",)) as server:
        server.script.set(TextDelta("a"), finished())
        for name in ({"api_key": "secret"}, {"auth_token": "secret"}):
            with anthropic.Anthropic(base_url=server.url, max_retries=0, **name) as client:
                assert client.messages.create(**body()).content[0].text == "a"
        with anthropic.Anthropic(base_url=server.url, max_retries=0, api_key="wrong") as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                client.messages.create(**body())
            assert caught.value.body["error"]["type"] == "authentication_error"
        owners = {request.owner for request in server.script.requests}
        assert len(owners) == 1
        assert owners != {""}
