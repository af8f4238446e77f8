"""`/v1/responses`: OpenAI's own client against a server whose answers are written down beforehand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs the extra `test`")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME, serving  # noqa: E402
from scripted_chat import Scripted, finished, scripted  # noqa: E402
from test_server_anthropic import sse  # noqa: E402

import specdec  # noqa: E402
from specdec.server.errors import ApiError  # noqa: E402
from specdec.server.events import (  # noqa: E402
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolArgumentsDelta,
    ToolCallStart,
    Usage,
)
from specdec.server.responses.store import ResponseStore, StoredResponse  # noqa: E402

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
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
SPECULATION = {
    "mean_acceptance_length": 0.0,
    "draft_acceptance_rate": 0.0,
    "acceptance_histogram": [],
    "num_spec_steps": 0,
    "num_accepted_draft_tokens": 0,
    "num_draft_tokens": 0,
    "num_spec_tokens": 0,
}


def end(reason: str = "stop", **more: Any) -> Any:
    """The end of an answer."""
    return finished(reason, metrics={"speculative_decoding": SPECULATION}, timings={"predicted_n": 7}, **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with scripted(tmp_path_factory.mktemp("stores") / "text") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Scripted) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


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


def test_a_response_goes_on_from_an_earlier_one(server: Scripted, client: Any) -> None:
    server.script.set(*CALLING[:7], end("tool_calls"))
    first = client.responses.create(model=NAME, input="Köln?", instructions="Be brief.", tools=[WEATHER])
    server.script.set(TextDelta("Rain."), end())
    second = client.responses.create(
        model=NAME,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": "call_abc", "output": "rain"}],
    )
    assert second.previous_response_id == first.id
    roles = [(message["role"], message.get("content")) for message in server.script.request.messages]
    expected = [("user", "Köln?"), ("assistant", "I look."), ("tool", "rain")]
    assert roles == expected  # instructions are not carried over
    assert server.script.request.messages[1]["tool_calls"][0]["id"] == "call_abc"
    assert server.script.request.messages[1]["reasoning_content"] == "I have to look."
    with client.responses.stream(model=NAME, previous_response_id=second.id, input="Thanks.") as stream:
        third = stream.get_final_response()
    roles = [(message["role"], message.get("content")) for message in server.script.request.messages]
    assert roles == [*expected, ("assistant", "Rain."), ("user", "Thanks.")]
    assert client.responses.retrieve(third.id).output_text == "Rain."


def test_output_may_be_sent_back_as_input(server: Scripted, client: Any) -> None:
    server.script.set(*CALLING, end("tool_calls"))
    first = client.responses.create(model=NAME, input="Köln?", tools=[WEATHER], store=False)
    client.responses.create(model=NAME, input=[{"role": "user", "content": "Köln?"}, *first.output])
    assistant = server.script.request.messages[1]
    assert assistant["content"] == "I look."
    assert assistant["reasoning_content"] == "I have to look."
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_abc", "call_def"]


def test_responses_are_kept_and_forgotten(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), end())
    kept = client.responses.create(model=NAME, input="Hello")
    assert client.responses.retrieve(kept.id).to_dict() == kept.to_dict()
    page = client.responses.input_items.list(kept.id)
    assert [item.content[0].text for item in page.data] == ["Hello"]
    client.responses.delete(kept.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            ask(kept.id)
    loose = client.responses.create(model=NAME, input="Hello", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(loose.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=NAME, input="Hello", previous_response_id=loose.id)
    assert caught.value.code == "previous_response_not_found"


def test_items_of_a_response_come_in_pages(server: Scripted, client: Any) -> None:
    server.script.set(TextDelta("a"), end())
    texts = [str(number) for number in range(25)]
    kept = client.responses.create(model=NAME, input=[{"role": "user", "content": text} for text in texts])
    listed = [item.content[0].text for item in client.responses.input_items.list(kept.id, order="asc", limit=10)]
    assert listed == texts
    assert [item.content[0].text for item in client.responses.input_items.list(kept.id)] == texts[::-1]
    for query in ("limit=0", "limit=x", "order=up", "after=nobody"):
        response = server.running.get(f"/v1/responses/{kept.id}/input_items?{query}")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == query.partition("=")[0]
    assert server.running.get(f"/v1/responses/{kept.id}?stream=true").status_code == 400


def test_responses_belong_to_their_owner(tmp_path: Path) -> None:
    with scripted(tmp_path / "text", api_keys=("one", "two")) as server:
        server.script.set(TextDelta("a"), end())
        one, two = (openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in ("one", "two"))
        with one, two:
            kept = one.responses.create(model=NAME, input="Hello")
            for ask in (two.responses.retrieve, two.responses.delete):
                with pytest.raises(openai.NotFoundError):
                    ask(kept.id)
            with pytest.raises(openai.BadRequestError):
                two.responses.create(model=NAME, input="Hello", previous_response_id=kept.id)
            assert one.responses.retrieve(kept.id).id == kept.id


def test_the_store_is_bounded() -> None:
    def stored(name: str, text: str = "") -> StoredResponse:
        return StoredResponse({"id": name, "output": [], "text": text}, [])

    def names(store: ResponseStore, owner: str, among: str) -> str:
        found = ""
        for name in among:
            with contextlib.suppress(ApiError):
                found += store.get(owner, name).response["id"]
        return found

    store = ResponseStore(most=3, most_bytes=1000)
    for name in "abcd":
        store.keep("one", stored(name))
    store.keep("two", stored("a"))
    assert names(store, "one", "abcd") == "bcd"
    store.delete("one", "c")
    store.keep("one", stored("e", "x" * 900))
    assert names(store, "one", "abcde") == "de"
    store.keep("one", stored("f", "x" * 2000))
    assert names(store, "one", "abcdef") == ""
    store.keep("one", stored("g", "x" * 900))
    assert names(store, "one", "g") == "g"
    assert names(store, "two", "a") == "a"


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
