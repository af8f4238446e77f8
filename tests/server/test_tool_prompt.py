"""Tools, calls and results in the form that chat templates read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_templates import CHATML, DEEPSEEK, GEMMA, LLAMA3, MISTRAL, QWEN3

from specdec.errors import InvalidArgumentError
from specdec.server.answer_form import AnswerForm
from specdec.server.events import ChatRequest
from specdec.server.tools.formats import tool_format
from specdec.server.tools.prompt import short_id
from specdec.tokenizers.chat_template import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_abc", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
CHAT = [
    {"role": "user", "content": "How is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_abc", "content": "Rain."},
]


def form_of(source: str) -> AnswerForm:
    return AnswerForm(source, ChatTemplate(source, {}).render, lambda _: None)


def rendered(source: str, messages: list[dict[str, Any]], **settings: Any) -> str:
    found, variables = form_of(source).prompt(ChatRequest(messages=messages, **settings))
    return ChatTemplate(source, {}).render(found, **variables)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (QWEN3, "hermes"),
        (QWEN3.replace('{"name": <name>', "<function=name><parameter=key>"), "qwen3-coder"),
        (LLAMA3, "llama"),
        ("'<|python_tag|>'", "llama"),
        ("<function=example>{}</function>", "llama-function"),
        (MISTRAL, "mistral-list"),
        ("'[TOOL_CALLS]' + name + '[ARGS]'", "mistral"),
        (DEEPSEEK, "deepseek"),
        (DEEPSEEK + "```json", "deepseek-r1"),
        ("respond only with <|tool_call|> followed by a JSON list", "granite"),
        ("'<|tool_call|>' + call + '<|/tool_call|>'", "phi"),
        ("<|start|>assistant<|channel|>final<|message|>", "harmony"),
        (CHATML, "hermes"),
        (None, "hermes"),
    ],
)
def test_templates_show_how_calls_are_written(source: str | None, name: str) -> None:
    assert tool_format(source).name == name


@pytest.mark.parametrize(
    ("source", "call"),
    [
        (QWEN3, '<tool_call>\n{"name": "weather", "arguments": {"city":"Köln"}}\n</tool_call>'),
        (LLAMA3, '{"name": "weather", "parameters": {"city": "Köln"}}'),
        (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln"}, "id": "'),
        (DEEPSEEK, '>weather<\uff5ctool\u2581sep\uff5c>{"city":"Köln"}<'),
        (CHATML, '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'),
        (GEMMA, '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'),
    ],
)
def test_calls_and_results_are_in_the_prompt(source: str, call: str) -> None:
    for tools in ([WEATHER], []):
        text = rendered(source, CHAT, tools=tools)
        assert call in text
        assert "Rain." in text
        assert text.index(call) < text.index("Rain.")


@pytest.mark.parametrize("source", [QWEN3, LLAMA3, MISTRAL, CHATML, GEMMA])
def test_tools_are_in_the_prompt_unless_none_may_be_called(source: str) -> None:
    assert "The weather of a city." in rendered(source, CHAT[:1], tools=[WEATHER])
    assert "The weather of a city." not in rendered(source, CHAT[:1], tools=[WEATHER], tool_choice="none")
    assert rendered(source, CHAT[:1]) == ChatTemplate(source, {}).render(CHAT[:1])


def test_a_template_without_tools_is_told_of_them_in_the_first_message() -> None:
    text = rendered(CHATML, CHAT[:1], tools=[WEATHER])
    assert text.startswith("<|im_start|>system\n# Tools")
    assert json.dumps(WEATHER) in text
    assert "<tool_call>" in text
    text = rendered(
        CHATML, [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *CHAT[:1]], tools=[WEATHER]
    )
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert rendered(GEMMA, CHAT[:1], tools=[WEATHER]).startswith("<start_of_turn>user\n# Tools")


def test_results_without_a_role_of_their_own_are_the_users() -> None:
    second = {"role": "tool", "tool_call_id": "call_2", "content": "Sun."}
    text = rendered(GEMMA, [*CHAT, second, {"role": "user", "content": "So?"}])
    results = "<tool_response>\nRain.\n</tool_response>\n<tool_response>\nSun.\n</tool_response>\nSo?"
    assert text.endswith(f"<start_of_turn>user\n{results}<end_of_turn>\n")


def test_text_beside_a_call_is_kept() -> None:
    message = {**CHAT[1], "content": "I look."}
    assert 'I look.\n<tool_call>\n{"name"' in rendered(GEMMA, [CHAT[0], message])
    assert 'I look.\n<tool_call>\n{"name"' in rendered(QWEN3, [CHAT[0], message])


def test_ids_where_a_template_demands_nine_characters() -> None:
    text = rendered(MISTRAL, CHAT)
    name = short_id("call_abc")
    assert text.count(f'"{name}"') == 2
    assert len(name) == 9
    assert name.isalnum()
    assert short_id("call_abd") != name
    assert short_id("AbCdEf012") == "AbCdEf012"
    found, _ = form_of(QWEN3).prompt(ChatRequest(messages=CHAT))
    assert found[2]["tool_call_id"] == "call_abc"


def test_arguments_that_are_not_json_do_no_harm() -> None:
    for arguments in ('{"city": ', "", "[1]", "null"):
        call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
        for source in (QWEN3, LLAMA3, MISTRAL, DEEPSEEK, CHATML):
            assert "weather" in rendered(source, [CHAT[0], {**CHAT[1], "tool_calls": [call]}, CHAT[2]])


def test_reasoning_of_earlier_turns_reaches_the_template() -> None:
    for field in ("reasoning_content", "reasoning", "thinking"):
        message = {"role": "assistant", "content": "Yes.", field: "I thought."}
        assert "<think>\nI thought.\n</think>\n\nYes." in rendered(QWEN3, [CHAT[0], message])


def test_developers_are_systems_where_a_template_knows_none() -> None:
    assert rendered(CHATML, [{"role": "developer", "content": "a"}, *CHAT[:1]]).startswith("<|im_start|>system\na")


@pytest.mark.parametrize("choice", ["required", {"name": "other"}])
def test_a_choice_of_tools_that_there_are_not(choice: Any) -> None:
    tools = [] if choice == "required" else [WEATHER]
    with pytest.raises(InvalidArgumentError, match="tool_choice"):
        form_of(QWEN3).prompt(ChatRequest(messages=CHAT[:1], tools=tools, tool_choice=choice))


def test_a_template_that_takes_one_call_at_a_time_refuses_two() -> None:
    with pytest.raises(InvalidArgumentError, match="only single tool-calls at once"):
        rendered(LLAMA3, [CHAT[0], {**CHAT[1], "tool_calls": [CALL, CALL]}])
