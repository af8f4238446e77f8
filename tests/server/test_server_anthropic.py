"""`/v1/messages`: Anthropic's own client against a server whose answers are written down beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME, serving  # noqa: E402
from responses_api import sse  # noqa: E402
from scripted_chat import Scripted, finished  # noqa: E402

import specdec  # noqa: E402
from specdec.server.anthropic import routes  # noqa: E402
from specdec.server.events import ReasoningDelta, TextDelta, ToolArgumentsDelta, ToolCallStart, Usage  # noqa: E402

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALLING = (
    ReasoningDelta("I have "),
    ReasoningDelta("to look."),
    TextDelta("I "),
    TextDelta("look."),
    ToolCallStart(0, "call_abc", "weather"),
    ToolArgumentsDelta(0, '{"city": "K'),
    ToolArgumentsDelta(0, 'öln"}'),
    ToolCallStart(1, "call_def", "weather"),
    ToolArgumentsDelta(1, "{}"),
)


@pytest.fixture(scope="module")
def client(server: Scripted) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def body(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "max_tokens": 50, "messages": HELLO, **fields}


def test_a_message(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("Good "), TextDelta("day."), finished())
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 7}  # later clients have no arguments for them
    message = client.messages.create(**body(metadata={"user_id": "u"}), extra_body=sampling)
    assert message.type == "message"
    assert message.role == "assistant"
    assert message.id.startswith("msg_")
    assert message.model == NAME
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Good day."}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (20, 10, 7)
    request = server.script.request
    assert list(request.messages) == HELLO
    assert not request.streamed
    assert {name: request.options[name] for name in ("max_tokens", "temperature", "top_p", "top_k")} == {
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
    }


def test_the_events_of_a_stream(server: Scripted) -> None:
    server.script.set(*CALLING, finished("tool_calls"))
    response = server.post("/v1/messages", body(stream=True, tools=[WEATHER]))
    assert response.headers["content-type"].startswith("text/event-stream")
    start, ping, *rest = sse(response.text)
    assert start["type"] == "message_start"
    message = start["message"]
    assert message["content"] == []
    assert message["stop_reason"] is None
    assert message["usage"]["input_tokens"] > 5
    assert ping == {"type": "ping"}

    def block(index: int, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}

    def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}

    def stop(index: int) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": index}

    signature = next(one for one in rest if one.get("delta", {}).get("type") == "signature_delta")
    assert signature["delta"]["signature"]
    assert rest == [
        block(0, "thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="I have "),
        delta(0, "thinking_delta", thinking="to look."),
        signature,
        stop(0),
        block(1, "text", text=""),
        delta(1, "text_delta", text="I "),
        delta(1, "text_delta", text="look."),
        stop(1),
        block(2, "tool_use", id="toolu_abc", name="weather", input={}),
        delta(2, "input_json_delta", partial_json='{"city": "K'),
        delta(2, "input_json_delta", partial_json='öln"}'),
        stop(2),
        block(3, "tool_use", id="toolu_def", name="weather", input={}),
        delta(3, "input_json_delta", partial_json="{}"),
        stop(3),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "input_tokens": 20,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 10,
                "output_tokens": 7,
            },
        },
        {"type": "message_stop"},
    ]


def test_the_client_reads_a_stream_as_the_whole_message(server: Scripted, client: Any) -> None:
    server.script.set(*CALLING, finished("tool_calls"))
    whole = client.messages.create(**body(tools=[WEATHER]))
    with client.messages.stream(**body(tools=[WEATHER])) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert server.script.request.streamed
    assert "text" in kinds
    assert "thinking" in kinds
    assert "input_json" in kinds
    thinking, text, first, second = whole.content
    assert thinking.thinking == "I have to look."
    assert text.text == "I look."
    assert (first.id, first.name, first.input) == ("toolu_abc", "weather", {"city": "Köln"})
    assert (second.id, second.input) == ("toolu_def", {})
    assert whole.stop_reason == "tool_use"
    alike = [one.to_dict() for one in streamed.content]
    assert alike == [one.to_dict() for one in whole.content]
    assert streamed.usage.to_dict() == whole.usage.to_dict()


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (finished("stop"), "end_turn", None),
        (finished("stop", stop_string="END"), "stop_sequence", "END"),
        (finished("length"), "max_tokens", None),
        (finished("tool_calls"), "tool_use", None),
    ],
)
def test_why_an_answer_ended(server: Scripted, client: Any, end: Any, reason: str, sequence: str | None) -> None:
    server.script.set(TextDelta("a"), end)
    message = client.messages.create(**body(stop_sequences=["END"]))
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    assert server.script.request.options["stop"] == ("END",)


def test_an_answer_without_anything(server: Scripted, client: Any) -> None:
    server.script.set(finished(usage=Usage(3, 1)))
    assert client.messages.create(**body()).content == []
    with client.messages.stream(**body()) as stream:
        assert stream.get_final_message().content == []


def test_a_call_that_breaks_off(server: Scripted, client: Any) -> None:
    text = '{"city": "Köln", "days": [1, 2'
    server.script.set(ToolCallStart(0, "call_a", "weather"), ToolArgumentsDelta(0, text), finished("length"))
    [block] = client.messages.create(**body(tools=[WEATHER])).content
    assert block.input == {"city": "Köln", "days": [1]}
    with client.messages.stream(**body(tools=[WEATHER])) as stream:
        assert stream.get_final_message().content[0].input["city"] == "Köln"


def test_half_a_surrogate_pair_in_arguments(server: Scripted) -> None:
    server.script.set(
        ToolCallStart(0, "call_a", "f"), ToolArgumentsDelta(0, '{"a": "\\ud800"}'), finished("tool_calls")
    )
    response = server.post("/v1/messages", body(tools=[{**WEATHER, "name": "f"}]))
    assert response.status_code == 200
    assert response.json()["content"][0]["input"] == {"a": "\ud800"}


def test_a_conversation_in_blocks(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), finished())
    client.messages.create(
        **body(
            system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", "cache_control": None}],
            tools=[WEATHER, {**WEATHER, "name": "other", "type": "custom"}],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "Köln?"}, {"type": "text", "text": "Now."}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}},
                        {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain."},
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_2",
                            "is_error": True,
                            "content": [{"type": "text", "text": "No city."}],
                        },
                        {"type": "text", "text": "So?"},
                    ],
                },
                {"role": "user", "content": "Well?"},
            ],
        )
    )
    request = server.script.request

    def call(name: str, arguments: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": "weather", "arguments": arguments}}

    assert list(request.messages) == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "Köln?\nNow."},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [call("toolu_1", '{"city": "Köln"}'), call("toolu_2", "{}")],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Rain."},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "No city."},
        {"role": "user", "content": "So?\nWell?"},
    ]
    assert [tool["function"]["name"] for tool in request.tools] == ["weather", "other"]
    assert request.tools[0] == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": WEATHER["input_schema"],
        },
    }


def test_an_assistants_last_message_is_continued(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), finished())
    client.messages.create(**body(messages=[*HELLO, {"role": "assistant", "content": "The Rhine"}]))
    assert server.script.request.continue_final
    client.messages.create(**body(messages=[*HELLO, {"role": "assistant", "content": ""}]))
    assert not server.script.request.continue_final
    assert list(server.script.request.messages) == HELLO


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "tool", "name": "weather"}, {"name": "weather"}, True),
        ({"type": "none"}, "none", True),
    ],
)
def test_choices_of_tools(server: Scripted, client: Any, choice: Any, expected: Any, parallel: bool) -> None:
    server.script.set(TextDelta("a"), finished())
    client.messages.create(**body(tools=[WEATHER], tool_choice=choice))
    assert server.script.request.tool_choice == expected
    assert server.script.request.parallel_tool_calls == parallel


def test_thinking(server: Scripted, client: Any) -> None:
    server.script.set(*CALLING[:3], finished())
    for thinking, is_on in (
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 20}, True),
        ({"type": "adaptive"}, True),
    ):
        client.messages.create(**body(**({} if thinking is None else {"thinking": thinking})))
        assert server.script.request.options["chat_template_kwargs"]["enable_thinking"] is is_on
    hidden = client.messages.create(**body(thinking={"type": "adaptive", "display": "omitted"}))
    assert hidden.content[0].thinking == ""
    assert hidden.content[0].signature
    client.messages.create(**body(output_config={"effort": "max"}))
    assert server.script.request.options["chat_template_kwargs"]["reasoning_effort"] == "high"


def test_json_output(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("{}"), finished())
    schema = {"type": "object", "properties": {}}
    client.messages.create(**body(output_config={"format": {"type": "json_schema", "schema": schema}}))
    assert server.script.request.options["response_format"]["json_schema"]["schema"] == schema


def test_tokens_are_counted(server: Scripted, client: Any) -> None:
    few = client.messages.count_tokens(model=NAME, messages=HELLO).input_tokens
    more = client.messages.count_tokens(model=NAME, messages=HELLO, system="Be brief.", tools=[WEATHER]).input_tokens
    assert 5 < few < few + 50 < more
    server.script.set(TextDelta("a"), finished())
    start = sse(server.post("/v1/messages", body(stream=True)).text)[0]
    assert start["message"]["usage"]["input_tokens"] == few
    long = [{"role": "user", "content": "x " * 1000}]  # more than the context holds
    assert client.messages.count_tokens(model=NAME, messages=long).input_tokens > 1000


def test_pings_while_nothing_comes(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PING_EVERY_S", 0.02)
    server.script.set(TextDelta("a"), TextDelta("b"), finished(), wait_s=0.15)
    found = sse(server.post("/v1/messages", body(stream=True)).text)
    kinds = [event["type"] for event in found]
    assert kinds.count("ping") > 2
    assert [kind for kind in kinds if kind != "ping"] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_a_real_answer_is_that_of_plain_decoding(text_model: Path) -> None:
    model = specdec.load(text_model, runtime="reference")
    with serving(model) as running, anthropic.Anthropic(base_url=running.url, api_key="x", max_retries=0) as client:
        fields = body(max_tokens=20, extra_body={"temperature": 0})
        expected = specdec.generate(model, HELLO, speculate=False, max_tokens=20)
        message = client.messages.create(**fields)
        assert "".join(block.text for block in message.content) == expected.text
        assert message.usage.output_tokens == len(expected.tokens)
        with client.messages.stream(**fields) as stream:
            assert "".join(stream.text_stream) == expected.text
