"""`/v1/responses`: OpenAI's own client against a server whose answers are written down beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME, serving  # noqa: E402
from responses_api import CALLING, WEATHER, end, sse  # noqa: E402
from scripted_chat import Scripted  # noqa: E402

import specdec  # noqa: E402
from specdec.server.events import (  # noqa: E402
    TextDelta,
    TokenLogprob,
    ToolArgumentsDelta,
    ToolCallStart,
    Usage,
)


def test_a_response(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("Good "), TextDelta("day."), end())
    response = client.responses.create(
        model=NAME,
        input="Hello",
        instructions="Be brief.",
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        metadata={"a": "b"},
        user="u",
    )
    assert response.object == "response"
    assert response.id.startswith("resp_")
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert response.output_text == "Good day."
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.id.startswith("msg_")
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (30, 7, 37)
    assert usage.input_tokens_details.cached_tokens == 10
    assert usage.output_tokens_details.reasoning_tokens == 2
    assert (response.model, response.instructions, response.max_output_tokens) == (NAME, "Be brief.", 50)
    assert (response.temperature, response.top_p, response.metadata) == (0.5, 0.9, {"a": "b"})
    assert (response.tool_choice, response.tools, response.parallel_tool_calls) == ("auto", [], True)
    assert response.text.format.type == "text"
    assert response.created_at <= response.completed_at
    request = server.script.request
    assert list(request.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    assert (request.options["max_tokens"], request.options["temperature"]) == (50, 0.5)
    assert not request.streamed


def test_the_events_of_a_stream(server: Scripted) -> None:
    server.script.set(*CALLING, end("tool_calls"))
    sent = {"input": "Köln?", "tools": [WEATHER], "stream": True}
    found = sse(server.post("/v1/responses", sent).text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    created, in_progress, *rest, completed = found
    for event, kind in ((created, "created"), (in_progress, "in_progress")):
        assert event["type"] == f"response.{kind}"
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == []
    response = completed["response"]
    assert completed["type"] == "response.completed"
    assert response["status"] == "completed"
    reasoning, message, first, second = response["output"]
    assert {event["output_index"] for event in rest} == {0, 1, 2, 3}
    brief = [
        (event["output_index"], event["type"].removeprefix("response."), event.get("delta", event.get("text")))
        for event in rest
    ]
    assert brief == [
        (0, "output_item.added", None),
        (0, "content_part.added", None),
        (0, "reasoning_text.delta", "I have "),
        (0, "reasoning_text.delta", "to look."),
        (0, "reasoning_text.done", "I have to look."),
        (0, "content_part.done", None),
        (0, "output_item.done", None),
        (1, "output_item.added", None),
        (1, "content_part.added", None),
        (1, "output_text.delta", "I "),
        (1, "output_text.delta", "look."),
        (1, "output_text.done", "I look."),
        (1, "content_part.done", None),
        (1, "output_item.done", None),
        (2, "output_item.added", None),
        (2, "function_call_arguments.delta", '{"city": "K'),
        (2, "function_call_arguments.delta", 'öln"}'),
        (2, "function_call_arguments.done", None),
        (2, "output_item.done", None),
        (3, "output_item.added", None),
        (3, "function_call_arguments.delta", "{}"),
        (3, "function_call_arguments.done", None),
        (3, "output_item.done", None),
    ]
    items = {event["output_index"]: event["item"] for event in rest if event["type"] == "response.output_item.done"}
    assert [items[number] for number in range(4)] == response["output"]
    added = {event["output_index"]: event["item"] for event in rest if event["type"] == "response.output_item.added"}
    assert [item["status"] for item in added.values()] == ["in_progress"] * 4
    assert [item.get("content") for item in added.values()] == [[], [], None, None]
    assert {event["item_id"] for event in rest if event["output_index"] == 2 and "item_id" in event} == {first["id"]}
    parts = [event["part"] for event in rest if event["type"] == "response.content_part.added"]
    assert parts == [
        {"type": "reasoning_text", "text": ""},
        {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    ]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "I have to look."}]
    assert message["content"][0]["text"] == "I look."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_abc", "weather", '{"city": "Köln"}')
    assert (second["call_id"], second["arguments"]) == ("call_def", "{}")


def test_the_client_reads_a_stream_as_the_whole_response(server: Scripted, client: Any) -> None:
    server.script.set(*CALLING, end("tool_calls"))
    whole = client.responses.create(model=NAME, input="Köln?", tools=[WEATHER])
    with client.responses.stream(model=NAME, input="Köln?", tools=[WEATHER]) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_response()
    assert server.script.request.streamed
    assert {"response.output_text.delta", "response.function_call_arguments.delta", "response.completed"} <= kinds

    def plain(value: Any) -> Any:
        """Without ids, and what the client adds while it reads a stream."""
        if isinstance(value, list):
            return [plain(one) for one in value]
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key not in ("id", "parsed", "parsed_arguments")}
        return value

    assert plain(streamed.to_dict()["output"]) == plain(whole.to_dict()["output"])
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]


def test_an_answer_that_is_cut_off(server: Scripted, client: Any) -> None:
    server.script.set(
        TextDelta("a"), ToolCallStart(0, "call_a", "weather"), ToolArgumentsDelta(0, '{"c'), end("length")
    )
    response = client.responses.create(model=NAME, input="Köln?", tools=[WEATHER], max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output] == ["completed", "incomplete"]
    assert response.output[1].arguments == '{"c'
    sent = {"input": "a", "tools": [WEATHER], "stream": True}
    assert sse(server.post("/v1/responses", sent).text)[-1]["type"] == "response.incomplete"


def test_an_answer_without_anything(server: Scripted, client: Any) -> None:
    server.script.set(end(usage=Usage(3, 1)))
    response = client.responses.create(model=NAME, input="Hello")
    assert (response.output, response.output_text, response.status) == ([], "", "completed")


def test_items_are_messages(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), end())
    client.responses.create(
        model=NAME,
        input=[
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "Köln?"}, {"type": "input_text", "text": "Now."}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": '{"city": "Bonn"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "Rain."},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "Sun."}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So."}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "Well?"},
        ],
    )

    def call(name: str, arguments: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": "weather", "arguments": arguments}}

    assert list(server.script.request.messages) == [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Köln?\nNow."},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [call("call_1", "{}"), call("call_2", '{"city": "Bonn"}')],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
        {"role": "tool", "tool_call_id": "call_2", "content": "Sun."},
        {"role": "assistant", "content": "No.", "reasoning_content": "So."},
        {"role": "user", "content": "Well?"},
    ]


@pytest.mark.parametrize(
    ("fields", "choice", "names"),
    [
        ({"tool_choice": "none"}, "none", ["weather", "other"]),
        ({"tool_choice": "required"}, "required", ["weather", "other"]),
        ({"tool_choice": {"type": "function", "name": "other"}}, {"name": "other"}, ["weather", "other"]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "other"}],
                }
            },
            "required",
            ["other"],
        ),
        ({"parallel_tool_calls": False}, "auto", ["weather", "other"]),
    ],
)
def test_choices_of_tools(server: Scripted, client: Any, fields: dict[str, Any], choice: Any, names: list[str]) -> None:
    server.script.set(TextDelta("a"), end())
    tools = [WEATHER, {"type": "function", "name": "other"}]
    response = client.responses.create(model=NAME, input="Hello", tools=tools, **fields)
    request = server.script.request
    assert request.tool_choice == choice
    assert [tool["function"]["name"] for tool in request.tools] == names
    assert request.parallel_tool_calls == response.parallel_tool_calls == ("parallel_tool_calls" not in fields)
    assert [tool.name for tool in response.tools] == ["weather", "other"]
    expected = {name: value for name, value in WEATHER.items() if name != "type"}
    assert "weather" not in names or request.tools[0] == {"type": "function", "function": expected}


def test_json_output(server: Scripted, client: Any) -> None:
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str

    server.script.set(TextDelta('{"city": "Köln"}'), end())
    parsed = client.responses.parse(model=NAME, input="Where?", text_format=Place)
    assert parsed.output_parsed == Place(city="Köln")
    asked = server.script.request.options["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["schema"]["properties"]["city"]["type"] == "string"
    client.responses.create(model=NAME, input="Where?", text={"format": {"type": "json_object"}})
    assert server.script.request.options["response_format"] == {"type": "json_object"}
    client.responses.create(model=NAME, input="Where?", text={"format": {"type": "text"}, "verbosity": "low"})
    assert "response_format" not in server.script.request.options


def test_effort_of_reasoning(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), end())
    for effort, expected in (
        ("none", {"enable_thinking": False, "thinking": False}),
        ("minimal", {"reasoning_effort": "low"}),
        ("high", {"reasoning_effort": "high"}),
    ):
        response = client.responses.create(model=NAME, input="a", reasoning={"effort": effort, "summary": "auto"})
        assert server.script.request.options["chat_template_kwargs"] == expected
        assert response.reasoning.effort == effort


def test_log_probabilities(server: Scripted, client: Any) -> None:
    rival = TokenLogprob(5, "b", b"b", -2.0)
    server.script.set(TextDelta("a", logprobs=(TokenLogprob(4, "a", b"a", -0.5, (rival,)),)), end())
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    response = client.responses.create(model=NAME, input="a", include=include, top_logprobs=1)
    assert server.script.request.options["logprobs"] == 1
    [entry] = response.output[0].content[0].logprobs
    assert (entry.token, entry.logprob, entry.bytes) == ("a", -0.5, [97])
    assert entry.top_logprobs[0].token == "b"
    sent = {"input": "a", "stream": True, "include": include}
    [delta] = [e for e in sse(server.post("/v1/responses", sent).text) if e["type"] == "response.output_text.delta"]
    assert delta["logprobs"][0]["logprob"] == -0.5
    assert client.responses.create(model=NAME, input="a").output[0].content[0].logprobs == []


def test_tokens_are_counted(server: Scripted, client: Any) -> None:
    few = client.responses.input_tokens.count(model=NAME, input="Hello").input_tokens
    more = client.responses.input_tokens.count(model=NAME, input="Hello", instructions="Be brief.").input_tokens
    assert 5 < few < more


def test_a_real_answer_is_that_of_plain_decoding(text_model: Path) -> None:
    model = specdec.load(text_model, runtime="reference")
    chat = [{"role": "user", "content": "Hello"}]
    with serving(model) as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
        fields = {"model": NAME, "input": "Hello", "max_output_tokens": 20, "temperature": 0}
        expected = specdec.generate(model, chat, speculate=False, max_tokens=20)
        response = client.responses.create(**fields)
        assert response.output_text == expected.text
        assert response.usage.output_tokens == len(expected.tokens)
        assert response.specdec["identical_to"] == "dense"
        streamed = client.responses.create(**fields, stream=True)
        assert "".join(e.delta for e in streamed if e.type == "response.output_text.delta") == expected.text
