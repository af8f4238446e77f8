"""Reasoning apart from the answer."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from chat_templates import CHATML, DEEPSEEK, QWEN3
from test_tool_calls import TOOLS, Read, cut, taken_apart

from specdec.server.answer_parser import AnswerParser
from specdec.server.events import ChatEvent, ReasoningDelta, TextDelta, TokenLogprob
from specdec.server.parsing.reasoning import HARMONY, Reasoning, ReasoningFormat, reasoning_format
from specdec.server.tools import formats

THINK = ReasoningFormat("<think>", "</think>")
POSSIBLE, INSIDE, OVER = Reasoning


def parsed(
    pieces: Iterable[str | tuple[str, str]],
    where: tuple[ReasoningFormat, Reasoning] | None,
    *,
    form: formats.ToolFormat = formats.HERMES,
    whole: bool = False,
) -> tuple[str, Read, AnswerParser]:
    """The reasoning, the rest, and the parser."""
    parser = AnswerParser(form, TOOLS, where, whole=whole)
    events: list[ChatEvent] = []
    for piece in pieces:
        text, control = (piece, "") if isinstance(piece, str) else piece
        events += parser.feed(text, control)
    events += parser.finish()
    return "".join(e.text for e in events if isinstance(e, ReasoningDelta)), taken_apart(events), parser


@pytest.mark.parametrize(
    ("state", "answer", "reasoning", "text"),
    [
        (POSSIBLE, "<think>\nHm < 3.\n</think>\n\nYes.", "Hm < 3.", "Yes."),
        (POSSIBLE, "  <think>a</think> b", "a", " b"),
        (POSSIBLE, "<think>\n\n</think>\n\nYes.\n", "", "Yes.\n"),
        (POSSIBLE, "<think>never over </thin", "never over </thin", ""),
        (POSSIBLE, "I <think> so </think>", "", "I <think> so </think>"),
        (POSSIBLE, "<thinking>", "", "<thinking>"),
        (POSSIBLE, " <thi", "", " <thi"),
        (INSIDE, "\nHm.\n\nSo.\n</think>\nYes.", "Hm.\n\nSo.", "Yes."),
        (INSIDE, "Hm.", "Hm.", ""),
        (INSIDE, "a</think>b</think>", "a", "b</think>"),
        (OVER, "<think>a</think>", "", "<think>a</think>"),
        (POSSIBLE, "", "", ""),
    ],
)
def test_reasoning(state: Reasoning, answer: str, reasoning: str, text: str) -> None:
    for pieces in cut(answer):
        found, rest, _ = parsed(pieces, (THINK, state))
        assert (found, rest.text) == (reasoning, text), pieces


def test_markers_as_control_tokens() -> None:
    magistral = ReasoningFormat("[THINK]", "[/THINK]")
    found, rest, parser = parsed([("", "[THINK]"), "a ", "b", ("", "[/THINK]"), "c"], (magistral, POSSIBLE))
    assert (found, rest.text, parser.reasoning_tokens) == ("a b", "c", 4)
    found, rest, _ = parsed([("", "[TOOL_CALLS]"), "now{}"], (magistral, POSSIBLE), form=formats.MISTRAL)
    assert (found, rest) == ("", Read("", [("now", "{}")]))


def test_calls_after_reasoning() -> None:
    call = '{"name": "now", "arguments": {}}'
    for written in (f"<tool_call>\n{call}\n</tool_call>", call):
        found, rest, parser = parsed(list(f"<think>I call {call}</think>\n\n{written}"), (THINK, POSSIBLE))
        assert found == f"I call {call}"
        assert rest == Read("", [("now", "{}")])
        assert parser.calls == 1


def test_reasoning_tokens_are_counted_with_their_markers() -> None:
    _, _, parser = parsed(["<think>", "\n", "a", "b", "</", "think>", "\n\n", "c", "d"], (THINK, POSSIBLE))
    assert parser.reasoning_tokens == 6
    assert parsed(["a", "b", "</think>", "c"], (THINK, INSIDE))[2].reasoning_tokens == 3
    assert parsed(["a", "b"], (THINK, INSIDE))[2].reasoning_tokens == 2
    assert parsed(["a", "b"], (THINK, POSSIBLE))[2].reasoning_tokens == 0
    assert parsed(["a", "b"], None)[2].reasoning_tokens == 0


def test_reasoning_streams_and_keeps_log_probabilities() -> None:
    parser = AnswerParser(formats.HERMES, None, (THINK, INSIDE))

    def feed(text: str) -> list[ChatEvent]:
        return parser.feed(text, logprobs=[TokenLogprob(0, text, b"", -1.0)])

    [event] = feed("a")
    assert isinstance(event, ReasoningDelta)
    assert [one.text for one in event.logprobs] == ["a"]
    assert feed("</think>") == []
    [event] = feed("b")
    assert isinstance(event, TextDelta)
    assert [one.text for one in event.logprobs] == ["b"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (QWEN3, "<think>"),
        (DEEPSEEK, "<think>"),
        (CHATML, None),
        (None, None),
        ("{{ '[THINK]' + x + '[/THINK]' }}", "[THINK]"),
        ("<|start|>assistant<|channel|>analysis<|message|>", HARMONY.begin),
    ],
)
def test_templates_show_how_reasoning_is_marked(template: str | None, expected: str | None) -> None:
    found = reasoning_format(template)
    assert (found.begin if found else None) == expected


def test_the_prompt_tells_where_an_answer_begins() -> None:
    assert THINK.after("<|im_start|>assistant\n") is POSSIBLE
    assert THINK.after("<|im_start|>assistant\n<think>\n") is INSIDE
    assert THINK.after("<think>\n\n</think>\n\n") is OVER


def harmony(text: str) -> list[str | tuple[str, str]]:
    """The pieces of an answer in gpt-oss's form, each control token apart."""
    import re

    return [("", one) if one.startswith("<|") else one for one in re.split(r"(<\|\w+\|>)", text) if one]


def test_harmony() -> None:
    answer = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.find <|constrain|>json<|message|>"
        '{"text": "a<|"}<|call|>'
    )
    for whole in (False, True):
        found, rest, parser = parsed(harmony(answer), (HARMONY, POSSIBLE), form=formats.HARMONY, whole=whole)
        assert found == "Hm."
        assert rest == Read("I look.", [("find", '{"text": "a<|"}')])
        assert parser.reasoning_tokens == 5
    final = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    assert parsed(harmony(final), (HARMONY, POSSIBLE), form=formats.HARMONY)[:2] == ("a", Read("Yes.", []))
    header = "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>"
    assert parsed(harmony(header), (HARMONY, POSSIBLE), form=formats.HARMONY)[1] == Read("", [("now", "{}")])
    assert parsed(["more", " text"], (HARMONY, OVER), form=formats.HARMONY)[1] == Read("more text", [])
    assert parsed(["no", " header"], (HARMONY, POSSIBLE), form=formats.HARMONY)[1] == Read("no header", [])


def test_harmony_calls_that_are_malformed() -> None:
    begin = "<|channel|>commentary to=functions.now<|message|>"
    for whole, expected in ((False, Read("oops}", [("now", '{"a": ')])), (True, Read('{"a": oops}', []))):
        found = parsed(harmony(begin + '{"a": oops}<|call|>'), (HARMONY, POSSIBLE), form=formats.HARMONY, whole=whole)
        assert found[1] == expected
    found = parsed(harmony(begin + '{"a": "b'), (HARMONY, POSSIBLE), form=formats.HARMONY, whole=True)
    assert found[1] == Read("", [("now", '{"a": "b')])
