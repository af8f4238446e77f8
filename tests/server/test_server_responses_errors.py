"""`/v1/responses`: requests that are refused, and answers that fail."""

from __future__ import annotations

from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME  # noqa: E402
from responses_api import WEATHER, end, sse  # noqa: E402
from scripted_chat import Scripted  # noqa: E402

from specdec.server.errors import ApiError  # noqa: E402
from specdec.server.events import (  # noqa: E402
    TextDelta,
)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "message", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": {}}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ["a"]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "call_id": 1, "name": "b", "arguments": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": 3}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": "a"}]}, "input[0].summary"),
        ({"input": [{"type": "reasoning", "summary": ["a"]}]}, "input[0].summary[0]"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"input": [{"type": "custom_tool_call"}]}, "input[0].type"),
        ({"instructions": 3}, "instructions"),
        ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
        ({"previous_response_id": 3}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["everything"]}, "include"),
        ({"include": [[]]}, "include"),
        ({"top_logprobs": 50}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": "a"}, "metadata"),
        ({"store": "yes"}, "store"),
        ({"stream": 1}, "stream"),
        ({"temperature": "warm"}, "temperature"),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": 3}}}, "text.format.schema"),
        ({"text": {"colour": "red"}}, None),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": {}}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0]"),
        ({"tools": [{**WEATHER, "parameters": []}]}, "tools[0].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": []}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": []}, "tool_choice"),
        ({"reasoning": {"effort": "wild"}}, "reasoning.effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"colour": "red"}, None),
    ],
)
def test_what_is_wrong_is_named(server: Scripted, fields: dict[str, Any], param: str | None) -> None:
    server.script.set(TextDelta("a"), end())
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        response = server.post(path, {"input": "Hello", **fields})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["message"].isprintable()


def test_errors_before_and_in_an_answer(server: Scripted, client: Any) -> None:
    server.script.set(error=ApiError(429, "the queue is full", code="queue_full", headers={"Retry-After": "3"}))
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            client.responses.create(model=NAME, input="a", stream=stream)
        assert caught.value.response.headers["retry-after"] == "3"
    server.script.set(TextDelta("a"), error=ValueError("secret"))
    *_, done, last = sse(server.post("/v1/responses", {"input": "a", "stream": True}).text)
    assert done["type"] == "response.output_item.done"
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "secret" not in last["response"]["error"]["message"]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(last["response"]["id"])
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt", input="a")
