"""Grammars of answers that have to be calls, tried with llguidance on a byte-level vocabulary."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from chat_templates import DEEPSEEK, LLAMA3, MISTRAL, QWEN3
from test_tool_calls import FORMATS

from specdec.server.answer_form import AnswerForm
from specdec.server.events import ChatRequest
from specdec.server.parsing.reasoning import Reasoning, ReasoningFormat
from specdec.server.tools import formats
from specdec.server.tools.constraint import MOST_CALLS, call_grammar
from specdec.server.tools.formats import ToolFormat

llguidance = pytest.importorskip("llguidance")

CONTROL = ["</s>", "[TOOL_CALLS]", "[ARGS]", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|start|>"]
SCHEMAS: dict[str, Any] = {
    "find": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer", "maximum": 9},
            "kind": {"enum": ["a", "b"]},
        },
        "required": ["text"],
    },
    "now": {"type": "object", "properties": {}},
}
THINK = ReasoningFormat("<think>", "</think>")


class _Bytes:
    """A vocabulary of bytes and control tokens."""

    eos_token_id, bos_token_id = 256, None
    tokens = [*(bytes([byte]) for byte in range(256)), *(name.encode() for name in CONTROL)]  # noqa: RUF012
    special_token_ids = list(range(256, 256 + len(CONTROL)))  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def vocabulary() -> Any:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def control_id(name: str) -> int | None:
    return 256 + CONTROL.index(name) if name in CONTROL else None


def tokens_of(text: str) -> list[int]:
    """Tokens of a text in which names of control tokens are those tokens."""
    for name in CONTROL:
        before, found, after = text.partition(name)
        if found:
            token = control_id(name)
            assert token is not None
            return [*tokens_of(before), token, *tokens_of(after)]
    return list(text.encode())


def allows(grammar: str, text: str) -> bool:
    """Whether the text is a whole answer by the grammar."""
    matcher = llguidance.LLMatcher(vocabulary(), llguidance.LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokens_of(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("form", [*FORMATS, formats.HARMONY], ids=lambda form: form.name)
def test_exactly_calls_are_allowed(form: ToolFormat) -> None:
    grammar = call_grammar(form.layout, SCHEMAS, control_id=control_id)
    find = ("find", {"text": 'an "end" \n é', "count": 3})
    written = form.layout.written
    assert allows(grammar, written([find]))
    assert allows(grammar, written([("now", {})]))
    assert allows(grammar, written([("find", {"text": "a", "kind": "b"})]))
    assert allows(grammar, written([find, ("now", {}), find])) == form.layout.several
    assert not allows(grammar, written([("find", {"count": 3})]))
    assert not allows(grammar, written([("find", {"text": "a", "count": 30})]))
    assert not allows(grammar, written([("find", {"text": "a", "kind": "c"})]))
    assert not allows(grammar, written([("find", {"text": "a", "more": 1})]))
    assert not allows(grammar, written([("other", {})]))
    assert not allows(grammar, "Hello. " + written([find]))
    assert not allows(grammar, written([find]) + " Hello.")
    assert not allows(grammar, "")


@pytest.mark.parametrize("form", [one for one in FORMATS if one.layout.several], ids=lambda form: form.name)
def test_calls_are_counted(form: ToolFormat) -> None:
    for most in (1, 2, MOST_CALLS):
        grammar = call_grammar(form.layout, SCHEMAS, most=most, control_id=control_id)
        assert allows(grammar, form.layout.written([("now", {})] * most))
        assert not allows(grammar, form.layout.written([("now", {})] * (most + 1)))


def test_markers_that_are_control_tokens_are_demanded_as_such() -> None:
    grammar = call_grammar(formats.MISTRAL.layout, SCHEMAS, control_id=control_id)
    assert grammar.count("<[257]>") == 2
    spelled = list(b"[TOOL_CALLS]")
    matcher = llguidance.LLMatcher(vocabulary(), llguidance.LLMatcher.grammar_from_lark(grammar))
    assert matcher.try_consume_tokens(spelled) == 0


def test_reasoning_may_come_first() -> None:
    layout = formats.HERMES.layout
    call = layout.written([("now", {})])
    possible = call_grammar(layout, SCHEMAS, control_id=control_id, reasoning=(THINK, Reasoning.POSSIBLE))
    inside = call_grammar(layout, SCHEMAS, control_id=control_id, reasoning=(THINK, Reasoning.INSIDE))
    over = call_grammar(layout, SCHEMAS, control_id=control_id, reasoning=(THINK, Reasoning.OVER))
    for text, expected in (
        (call, (True, False, True)),
        (f"<think>Hm </thi\n</think>\n\n{call}", (True, True, False)),
        (f"Hm.</think>{call}", (False, True, False)),
        ("<think>Hm.</think>", (False, False, False)),
    ):
        assert (allows(possible, text), allows(inside, text), allows(over, text)) == expected, text


def test_schemas_with_definitions_in_tags() -> None:
    schema = {
        "type": "object",
        "properties": {"place": {"$ref": "#/$defs/place"}},
        "required": ["place"],
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    }
    for form in (formats.QWEN_CODER, formats.HERMES):
        grammar = call_grammar(form.layout, {"go": schema}, control_id=control_id)
        assert allows(grammar, form.layout.written([("go", {"place": {"x": 1.5}})]))
        assert not allows(grammar, form.layout.written([("go", {"place": {"y": 1.5}})]))


def request_of(choice: Any, **settings: Any) -> ChatRequest:
    tools = [{"type": "function", "function": {"name": name, "parameters": one}} for name, one in SCHEMAS.items()]
    return ChatRequest(messages=[{"role": "user", "content": "?"}], tools=tools, tool_choice=choice, **settings)


def test_choices_of_tools() -> None:
    form = AnswerForm(QWEN3, lambda *_, **__: "", control_id)
    written = formats.HERMES.layout.written
    find, now = ("find", {"text": "a"}), ("now", {})
    for choice in ("auto", "none"):
        assert form.grammar(request_of(choice), "assistant\n") is None
    required = form.grammar(request_of("required"), "assistant\n")
    named = form.grammar(request_of({"name": "now"}), "assistant\n")
    single = form.grammar(request_of("required", parallel_tool_calls=False), "assistant\n")
    closed = form.grammar(request_of("required"), "<think>\n\n</think>\n\n")
    assert required is not None
    assert named is not None
    assert single is not None
    assert closed is not None
    assert allows(required, written([find, now]))
    assert allows(required, "<think>a</think>\n\n" + written([find]))
    assert not allows(closed, "<think>a</think>\n\n" + written([find]))
    assert allows(named, written([now]))
    assert not allows(named, written([find]))
    assert not allows(named, written([now, now]))
    assert allows(single, written([find]))
    assert not allows(single, written([find, now]))


@pytest.mark.parametrize("source", [LLAMA3, MISTRAL, DEEPSEEK])
def test_what_a_grammar_allows_is_read_as_calls(source: str) -> None:
    form = AnswerForm(source, lambda *_, **__: "", control_id)
    request = request_of({"name": "find"})
    arguments = {"text": "a"}
    text = formats.tool_format(source).layout.written([("find", arguments)])
    grammar = form.grammar(request, "")
    assert grammar is not None
    assert allows(grammar, text) or "</think>" in grammar
    parser = form.parser(request, "")
    events = [*parser.feed(text), *parser.finish()]
    assert json.loads("".join(getattr(event, "text", "") for event in events)) == arguments


def test_keywords_that_are_not_supported() -> None:
    """They are passed over, unless a function is strict."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    for form in (formats.HERMES, formats.QWEN_CODER):
        loose = call_grammar(form.layout, {"f": schema}, control_id=control_id)
        assert allows(loose, form.layout.written([("f", {"a": [1, 1]})]))
        strict = call_grammar(form.layout, {"f": schema}, strict=["f"], control_id=control_id)
        source = llguidance.LLMatcher.grammar_from_lark(strict)
        assert "uniqueItems" in llguidance.LLMatcher.validate_grammar(source)


def test_a_grammar_is_never_taken_for_gbnf() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x ::= y"]}}, "required": ["a"], "description": "::="}
    for form in (formats.HERMES, formats.QWEN_CODER):
        grammar = call_grammar(form.layout, {"f": schema}, control_id=control_id)
        assert "::=" not in grammar
        assert allows(grammar, form.layout.written([("f", {"a": "x ::= y"})]))


def test_every_form_of_a_schema_holds_after_reasoning() -> None:
    form = AnswerForm(QWEN3, lambda *_, **__: "", control_id)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for wanted in (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        {"type": "json_schema", "schema": schema},
        {"type": "json_object", "schema": schema},
    ):
        options = form.options(request_of("auto", options={"response_format": wanted}), "assistant\n")
        assert allows(options["grammar"], '<think>Hm.</think>\n{"a": 1}')
        assert not allows(options["grammar"], '<think>Hm.</think>\n{"b": 1}')


@pytest.mark.parametrize("option", ["grammar", "regex"])
def test_a_grammar_of_the_request_and_reasoning(option: str) -> None:
    """It holds from the first token on: what follows it is the answer, even where the template begins to think."""
    form = AnswerForm(DEEPSEEK, lambda *_, **__: "", control_id)

    def read(source: str, text: str) -> list[tuple[str, str]]:
        parser = form.parser(request_of("auto", options={option: source}), "<assistant><think>\n")
        return [(type(event).__name__, event.text) for event in (*parser.feed(text), *parser.finish())]

    assert read("[0-9]+", "42") == [("TextDelta", "42")]
    assert read("[a-z]+</think>[0-9]+", "hm</think>42") == [("ReasoningDelta", "hm"), ("TextDelta", "42")]
    both = request_of("auto", options={option: "[0-9]+", "response_format": {"type": "json_object"}})
    assert form.options(both, "assistant\n") == {}  # the library says that they contradict each other


def test_json_after_reasoning() -> None:
    form = AnswerForm(QWEN3, lambda *_, **__: "", control_id)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar = form.json_grammar(request_of("auto"), "assistant\n", schema)
    assert grammar is not None
    assert allows(grammar, '{"a": 1}')
    assert allows(grammar, '<think>Hm.</think>\n{"a": 1}')
    assert not allows(grammar, "<think>Hm.</think>\n1")
    assert form.json_grammar(request_of("auto"), "<think>\n\n</think>\n\n", schema) is None
    assert AnswerForm(LLAMA3, lambda *_, **__: "", control_id).json_grammar(request_of("auto"), "", schema) is None
