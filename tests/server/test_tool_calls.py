"""Tool calls in answers, however the answer is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.server.events import ChatEvent, TextDelta, TokenLogprob, ToolArgumentsDelta, ToolCallStart
from specdec.server.tools import formats
from specdec.server.tools.calls import ToolSet
from specdec.server.tools.formats import ToolFormat
from specdec.server.tools.parser import ToolCallParser, new_call_id

TOOLS = ToolSet(
    {
        "find": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "count": {"type": "integer"},
                "exact": {"type": "boolean"},
                "where": {"type": "array", "items": {"type": "string"}},
                "either": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            },
        },
        "now": {"type": "object", "properties": {}},
    }
)
FORMATS = [value for value in vars(formats).values() if isinstance(value, ToolFormat) and value.name != "harmony"]
HERMES, LLAMA, MISTRAL = formats.HERMES, formats.LLAMA, formats.MISTRAL


class Read(NamedTuple):
    """An answer taken apart."""

    text: str
    calls: list[tuple[str, str]]


def read(form: ToolFormat, pieces: Iterable[str | tuple[str, str]], **settings: Any) -> Read:
    """What a parser makes of an answer in pieces, each a text or a text and the control token after it."""
    parser = ToolCallParser(form.readers, TOOLS, bare=form.bare, **settings)
    events: list[ChatEvent] = []
    for piece in pieces:
        text, control = (piece, "") if isinstance(piece, str) else piece
        events += parser.feed(text, control)
    events += parser.finish()
    found = taken_apart(events)
    assert len(found.calls) == parser.calls
    return found


def taken_apart(events: Iterable[ChatEvent]) -> Read:
    text, calls = "", []
    for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, ToolCallStart):
            assert event.index == len(calls)
            calls.append((event.name, ""))
        elif isinstance(event, ToolArgumentsDelta):
            assert event.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return Read(text, calls)


def cut(text: str) -> list[list[str]]:
    """A text in pieces of several sizes."""
    return [
        [text[start : start + size] for start in range(0, len(text), size)] for size in (1, 2, 3, 5, 8, len(text) or 1)
    ]


def check(form: ToolFormat, text: str, expected: Read, **settings: Any) -> None:
    """The same for every cut, and whether or not calls are held back."""
    for pieces in cut(text):
        assert read(form, pieces, **settings) == expected, pieces


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("whole", [False, True])
def test_calls_as_the_model_was_trained_to_write_them(form: ToolFormat, whole: bool) -> None:
    arguments = {"text": 'an "end" </tool_call> [/] {', "count": 3, "exact": True, "where": ["é", "\n"], "either": None}
    written = form.layout.written([("find", arguments)])
    for pieces in cut(written):
        found = read(form, pieces, whole=whole)
        assert found.text == ""
        assert [(name, json.loads(text)) for name, text in found.calls] == [("find", arguments)]


@pytest.mark.parametrize("form", [one for one in FORMATS if one.layout.several], ids=lambda form: form.name)
def test_several_calls_with_text_around_them(form: ToolFormat) -> None:
    calls = [("find", {"text": "a"}), ("now", {}), ("find", {"count": -1})]
    text = f"I look.\n{form.layout.written(calls)} Done."
    for pieces in cut(text):
        found = read(form, pieces)
        assert found.text == "I look. Done."
        assert [(name, json.loads(arguments)) for name, arguments in found.calls] == calls


@given(st.dictionaries(st.sampled_from(["text", "other"]), st.text(), max_size=2), st.integers(1, 9), st.booleans())
def test_any_text_in_arguments(arguments: dict[str, str], size: int, ascii_only: bool) -> None:
    body = json.dumps({"name": "find", "arguments": arguments}, ensure_ascii=ascii_only)
    text = f"<tool_call>\n{body}\n</tool_call>"
    found = read(HERMES, [text[start : start + size] for start in range(0, len(text), size)])
    assert found.text == ""
    assert [(name, json.loads(one)) for name, one in found.calls] == [("find", arguments)]


@given(st.text(alphabet='<tool_call>\n/{}[]"name:,arguments find', max_size=60), st.integers(1, 7), st.booleans())
def test_no_text_raises_or_gets_lost(text: str, size: int, whole: bool) -> None:
    found = read(HERMES, [text[start : start + size] for start in range(0, len(text), size)], whole=whole)
    if not found.calls:
        assert found.text == text


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_ordinary_text_stays_as_it_is(form: ToolFormat) -> None:
    for text in (
        "  a < b, <tool, [TOOL and ``code``\n\n",
        "```python\nprint({'name': 1})\n```\n",
        '{"name": "Bob", "age": 3}',
        "functools.partial(f) <function> [1, 2]",
        " \n",
        "",
    ):
        check(form, text, Read(text, []))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnot JSON\n</tool_call>",
        "<tool_call>\n{'name': 'find'}\n</tool_call>",
        '<tool_call>\n{"arguments": {"text": "a"}}\n</tool_call>',
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "a b", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "find", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "find", "arguments": "no object"}\n</tool_call>',
        "<tool_call>\n<function=find>\nno parameter\n</function>\n</tool_call>",
        "<tool_call> <tool_call> <tool_call",
        '<tool_call>\n{"name": "fi',
        "<function=find",
        '```json\n{"name": "unknown", "arguments": {}}\n```',
    ],
)
def test_malformed_calls_are_text(text: str) -> None:
    for whole in (False, True):
        check(HERMES, text, Read(text, []), whole=whole)
        check(HERMES, f"{text} x", Read(f"{text} x", []), whole=whole)


def test_a_call_after_a_malformed_one() -> None:
    good = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    for bad in ("<tool_call>", "<tool_call>\noops", '<tool_call>{"nam', '{"name": "unknown"}'):
        check(HERMES, f"{bad} {good}", Read(bad, [("now", "{}")]))


def test_arguments_that_turn_out_malformed() -> None:
    """While they stream, what was JSON stays; an answer that is read as a whole has no such call."""
    text = '<tool_call>\n{"name": "find", "arguments": {"text": oops}}\n</tool_call>'
    check(HERMES, text, Read("oops}}\n</tool_call>", [("find", '{"text": ')]))
    check(HERMES, text, Read(text, []), whole=True)


def test_an_answer_that_ends_within_arguments() -> None:
    for whole in (False, True):
        check(
            HERMES,
            'So:\n<tool_call>\n{"name": "find", "arguments": {"text": "ab',
            Read("So:", [("find", '{"text": "ab')]),
            whole=whole,
        )


def test_arguments_stream_as_they_come() -> None:
    parser = ToolCallParser(HERMES.readers, TOOLS, new_id=lambda: "call_1")
    assert parser.feed('<tool_call>\n{"name": "find", "arguments": ') == []
    assert parser.feed('{"te') == [ToolCallStart(0, "call_1", "find"), ToolArgumentsDelta(0, '{"te')]
    assert parser.feed('xt": "a') == [ToolArgumentsDelta(0, 'xt": "a')]
    assert parser.feed('b"}}\n</tool_') == [ToolArgumentsDelta(0, 'b"}')]
    assert parser.feed("call>") == []
    assert parser.finish() == []
    coder = ToolCallParser(formats.QWEN_CODER.readers, TOOLS, new_id=lambda: "call_1")
    coder.feed("<tool_call>\n<function=find>\n<parameter=text>\n")
    assert coder.feed('a "b" <') == [ToolArgumentsDelta(0, 'a \\"b\\" ')]


def test_text_streams_as_it_comes() -> None:
    parser = ToolCallParser(HERMES.readers, TOOLS)
    assert parser.feed("Let me") == [TextDelta("Let me")]
    assert parser.feed(" see.\n<tool") == [TextDelta(" see.")]
    assert parser.feed("box> is a tag") == [TextDelta("\n<toolbox> is a tag")]


def test_what_small_models_write_instead() -> None:
    call = '{\n  "name": "find",\n  "arguments": {\n    "text": "a"\n  }\n}'
    expected = Read("", [("find", '{\n    "text": "a"\n  }')])
    for text in (call, f"```json\n{call}\n```", f"```\n{call}\n```\n", f"<tool_call>\n{call}"):
        check(HERMES, text, expected)
    check(HERMES, f"```json\n{call}\n{call}\n```", Read("", expected.calls * 2))
    check(HERMES, f"[{call}, {call}]", Read("", expected.calls * 2))
    check(
        HERMES,
        '<tool_call>{"name": "find", "arguments": {"text": "a"}</tool_call>',
        Read("", [("find", '{"text": "a"}')]),
    )
    check(
        HERMES,
        '<tool_call>{"arguments": {"text": "a"}, "name": "find"}</tool_call>',
        Read("", [("find", '{"text": "a"}')]),
    )
    check(
        HERMES,
        '<tool_call>{"name": "find", "arguments": "{\\"count\\": 1}"}</tool_call>',
        Read("", [("find", '{"count": 1}')]),
    )
    check(HERMES, '<tool_call>{"id": 7, "x": [1], "name": "now"}</tool_call>', Read("", [("now", "{}")]))
    check(HERMES, '<tool_call>{"name": "now", "arguments": null}</tool_call>', Read("", [("now", "{}")]))


def test_json_without_a_marker_is_a_call_only_at_the_beginning() -> None:
    call = '{"name": "now", "arguments": {}}'
    check(HERMES, f"For example {call}", Read(f"For example {call}", []))
    check(LLAMA, f" {call}; {call}", Read("", [("now", "{}")] * 2))
    check(LLAMA, '{"name": "now", "parameters": {}} ok', Read(" ok", [("now", "{}")]))
    check(LLAMA, '{"name": "now"}', Read('{"name": "now"}', []))


@pytest.mark.parametrize("name", ["<|python_tag|>", ""])
def test_control_tokens_around_calls(name: str) -> None:
    body = '{"name": "find", "parameters": {"text": "a"}}'
    assert read(LLAMA, [("", name), *body, ("", "<|eom_id|>")]) == Read("", [("find", '{"text": "a"}')])
    code = "print(1)"
    assert read(LLAMA, [("", name), *code, ("", "<|eom_id|>")]) == Read(code, [])


def test_hermes_with_control_tokens() -> None:
    body = '\n{"name": "now", "arguments": {}}\n'
    call = [("", "<tool_call>"), *body, ("", "</tool_call>")]
    assert read(HERMES, ["Yes.\n", *call, "\n", *call, ("", "<|im_end|>")]) == Read("Yes.", [("now", "{}")] * 2)
    assert read(HERMES, [("", "<tool_call>"), "no call", ("", "</tool_call>")]) == Read("no call", [])


def test_mistral_with_control_tokens() -> None:
    listed = [
        ("", "[TOOL_CALLS]"),
        '[{"name": "now", ',
        '"arguments": {}}, {"name": "find", "arguments": {"count": 1}}]',
    ]
    assert read(formats.MISTRAL_LIST, listed) == Read("", [("now", "{}"), ("find", '{"count": 1}')])
    named = [
        "Yes. ",
        ("", "[TOOL_CALLS]"),
        ("find", "[ARGS]"),
        '{"count": 1}',
        ("", "[TOOL_CALLS]"),
        ("now", "[CALL_ID]"),
        ("abcdefghi", "[ARGS]"),
        "{}",
        ("", "</s>"),
    ]
    assert read(MISTRAL, named) == Read("Yes.", [("find", '{"count": 1}'), ("now", "{}")])
    assert read(MISTRAL, [("", "[TOOL_CALLS]"), "now", "{}"]) == Read("", [("now", "{}")])
    assert read(MISTRAL, [("", "[TOOL_CALLS]"), "now and then"]) == Read("now and then", [])


def test_parameters_have_the_types_of_the_schema() -> None:
    values = {"text": "7", "count": "7", "exact": "True", "where": '["a"]', "either": "None", "unknown": "true"}
    tags = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    [(_, arguments)] = read(
        formats.QWEN_CODER, [f"<tool_call>\n<function=find>\n{tags}</function>\n</tool_call>"]
    ).calls
    assert json.loads(arguments) == {
        "text": "7",
        "count": 7,
        "exact": True,
        "where": ["a"],
        "either": None,
        "unknown": True,
    }


@pytest.mark.parametrize("value", ["", "a\n", "\n\na", "x < y\n</param", "</functions>", '"quoted"', "é\t\\"])
def test_texts_in_parameters(value: str) -> None:
    text = f"<function=find>\n<parameter=text>\n{value}\n</parameter>\n</function>"
    for pieces in cut(text):
        [(_, arguments)] = read(formats.QWEN_CODER, pieces).calls
        assert json.loads(arguments) == {"text": value}


def test_parameters_without_an_end() -> None:
    text = "<function=find>\n<parameter=text>\na\n<parameter=count>\n2\n</function>\n</tool_call>"
    for pieces in cut(text):
        [(_, arguments)] = read(formats.QWEN_CODER, pieces).calls
        assert json.loads(arguments) == {"text": "a", "count": 2}


def test_one_call_at_most() -> None:
    calls = HERMES.layout.written([("now", {}), ("find", {})])
    for pieces in cut(f"a {calls} b"):
        parser = ToolCallParser(HERMES.readers, TOOLS, parallel=False)
        events: list[ChatEvent] = []
        for piece in pieces:
            events += parser.feed(piece)
            assert parser.calls == 1 or not parser.is_full
        assert parser.is_full
        assert taken_apart([*events, *parser.finish()]) == Read("a", [("now", "{}")])


def test_log_probabilities_come_with_their_text() -> None:
    parser = ToolCallParser(HERMES.readers, TOOLS)

    def feed(text: str) -> list[tuple[str, list[str]]]:
        events = parser.feed(text, logprobs=[TokenLogprob(0, text, b"", -1.0)])
        return [(e.text, [one.text for one in e.logprobs]) for e in events if isinstance(e, TextDelta)]

    assert feed("a") == [("a", ["a"])]
    assert feed(" <") == []
    assert feed("b") == [(" <b", [" <", "b"])]
    assert feed("\n") == []
    for piece in cut('<tool_call>{"name": "now"}</tool_call>')[2]:
        assert feed(piece) == []
    assert feed(" c") == [(" c", [" c"])]


def test_ids() -> None:
    names = {new_call_id() for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith("call_") and len(name) == 29 and name[5:].isalnum() for name in names)
