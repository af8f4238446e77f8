"""Tools on a server of a tiny model, which knows nothing of them: only the grammar makes its answers calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic", reason="needs the extra `test`")
openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `grammar`")

from http_server import NAME, Running, serving  # noqa: E402
from text_model import text_store  # noqa: E402

import specdec  # noqa: E402

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Bonn"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
FUNCTIONS: list[dict[str, Any]] = [
    {"name": "weather", "description": "The weather.", "parameters": SCHEMA},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]
TOOLS: list[Any] = [{"type": "function", "function": function} for function in FUNCTIONS]
ASK: list[Any] = [{"role": "user", "content": "How is it?"}]
COMMON: dict[str, Any] = {"model": NAME, "max_tokens": 1500, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = text_store(tmp_path_factory.mktemp("stores") / "text", max_context=4096)
    with serving(specdec.load(store)) as running:
        yield running


def check(name: str, arguments: Any) -> None:
    """Whether a call is one of those that the tools allow."""
    if name == "now":
        assert arguments == {}
    else:
        assert name == "weather"
        assert set(arguments) == {"city", "days"}
        assert arguments["city"] in ("Köln", "Bonn")
        assert arguments["days"] in range(1, 10)


def calls_of(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def test_an_answer_has_to_be_a_call(client: Any) -> None:
    found = set()
    for seed in range(4):
        asked = {**COMMON, "seed": seed, "messages": ASK, "tools": TOOLS, "tool_choice": "required"}
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls = calls_of(choice.message)
        assert 1 <= len(calls) <= 16
        for name, arguments in calls:
            check(name, json.loads(arguments))
            found.add(name)
        plain = client.chat.completions.create(**asked, extra_body={"speculate": False}).choices[0]
        assert calls_of(plain.message) == calls
    assert found == {"weather", "now"}


def test_a_stream_holds_the_same_calls(client: Any) -> None:
    asked = {**COMMON, "messages": ASK, "tools": TOOLS, "tool_choice": "required"}
    whole = client.chat.completions.create(**asked).choices[0].message
    calls: dict[int, list[str]] = {}
    reasons = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content
            reasons.append(choice.finish_reason)
            for call in choice.delta.tool_calls or []:
                if call.index not in calls:
                    assert call.id.startswith("call_")
                    assert call.type == "function"
                    calls[call.index] = [call.function.name, ""]
                calls[call.index][1] += call.function.arguments
    assert [(name, arguments) for name, arguments in calls.values()] == calls_of(whole)
    assert reasons[-1] == "tool_calls"


def test_a_function_that_has_to_be_called(client: Any) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(**COMMON, messages=ASK, tools=TOOLS, tool_choice=choice)
    [(name, arguments)] = calls_of(answer.choices[0].message)
    assert name == "weather"
    check(name, json.loads(arguments))


def test_one_call_at_most(client: Any) -> None:
    for seed in range(3):
        asked = {**COMMON, "seed": seed, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        assert len(calls_of(client.chat.completions.create(**asked, messages=ASK).choices[0].message)) == 1


def test_calls_and_results_become_a_prompt(client: Any) -> None:
    asked = {**COMMON, "max_tokens": 5, "tools": TOOLS}
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    turns = [
        *ASK,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "9"},
    ]
    first = client.chat.completions.create(**asked, messages=ASK)
    second = client.chat.completions.create(**asked, messages=turns)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + 20
    none = client.chat.completions.create(**asked, messages=ASK, tool_choice="none")
    assert none.usage.prompt_tokens < first.usage.prompt_tokens - 200


def test_anthropics_messages(server: Running) -> None:
    tools = [{"name": one["name"], "input_schema": one["parameters"]} for one in FUNCTIONS]
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": NAME, "max_tokens": 1500, "messages": ASK, "tools": tools}
        asked |= {"tool_choice": {"type": "any"}, "extra_body": {"seed": 3}}
        message = client.messages.create(**asked)
        assert message.stop_reason == "tool_use"
        for block in message.content:
            assert block.type == "tool_use"
            check(block.name, block.input)
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        assert [(one.name, one.input) for one in streamed.content] == [(one.name, one.input) for one in message.content]


def test_openais_responses(client: Any) -> None:
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    response = client.responses.create(
        model=NAME, input="How is it?", tools=tools, tool_choice="required", extra_body={"seed": 3}
    )
    for item in response.output:
        assert item.type == "function_call"
        check(item.name, json.loads(item.arguments))
    outputs = [{"type": "function_call_output", "call_id": item.call_id, "output": "9"} for item in response.output]
    more = client.responses.create(
        model=NAME, previous_response_id=response.id, input=outputs, max_output_tokens=5, temperature=0
    )
    assert more.usage.input_tokens > 100


def test_schemas_that_are_not_supported(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1]}},
        "required": ["a"],
        "propertyNames": {"minLength": 1},
    }
    for strict in (False, True):
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}]
        asked = {**COMMON, "messages": ASK, "tools": tools, "tool_choice": "required"}
        if not strict:
            client.chat.completions.create(**asked)
            continue
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked)
        assert caught.value.param == "tools"
        assert "propertyNames" in caught.value.message


def test_a_schema_next_to_the_type_of_the_format(client: Any) -> None:
    """As llama-server takes it."""
    schema = {"enum": ["yes"]}
    for kind in ("json_schema", "json_object"):
        answer = client.chat.completions.create(
            **COMMON, messages=ASK, response_format={"type": kind, "schema": schema}
        )
        assert answer.choices[0].message.content == '"yes"'


def test_forms_that_contradict_each_other(client: Any) -> None:
    asked = {**COMMON, "messages": ASK, "tools": TOOLS, "tool_choice": "required"}
    with pytest.raises(openai.BadRequestError, match="contradict"):
        client.chat.completions.create(**asked, extra_body={"regex": "a"})
    answer = client.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert answer.choices[0].message.tool_calls
