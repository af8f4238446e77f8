"""The parser of JSON and YAML that others wrote: depth, numbers, text and amounts are bounded."""

from __future__ import annotations

import json

import pytest

from specdec import parse
from specdec.parse import MOST_DEPTH, ParseError, parse_json, parse_yaml


def test_plain_values_are_read() -> None:
    value = {"a": [1, -2.5, None, True, "é", {"b": []}], "c": (1 << 64) - 1}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value
    assert parse_yaml("a: [1, 2.5, x]\nb: {c: null}\n") == {"a": [1, 2.5, "x"], "b": {"c": None}}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds on amounts that a test reaches soon."""
    monkeypatch.setattr(parse, "MOST_CONTAINERS", 200)
    monkeypatch.setattr(parse, "MOST_VALUES", 1000)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "more than 64 deep"),
        ("[" * 190, "more than 64 deep|not valid"),
        ("[" * 100_000, "objects and arrays"),
        ("[" + "[]," * 200 + "1]", "objects and arrays"),
        ("[" + "1," * 1001 + "1]", "values"),
        ("{" + '"a":1,' * 500 + '"b":1}', "values"),
        ("9" * 30, "whole number of more than 64 bits"),
        ("-" + "9" * 1_000_000, "whole number of more than 64 bits"),
        (r'["\ud800"]', "half a surrogate pair"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_what_exceeds_a_bound_is_refused(text: str, told: str) -> None:
    for content in (text, text.encode()):
        with pytest.raises(ParseError, match=told):
            parse_json(content)


@pytest.mark.usefixtures("few")
def test_bounds_themselves_are_read() -> None:
    assert parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    assert len(parse_json("[" + "0," * 1000 + "0]")) == 1001
    assert len(parse_json("[" + "[]," * 198 + "[]]")) == 199


@pytest.mark.usefixtures("few")
def test_punctuation_in_text_counts_for_nothing() -> None:
    text = '[{,:"\\' * 2000
    assert parse_json(json.dumps([text])) == [text]


def test_the_bounds_are_above_every_model() -> None:
    tokens, merges, added = 262_144, 514_906, 6_415  # of Gemma 3
    assert 2 * (merges + added) < parse.MOST_CONTAINERS
    assert 4 * (tokens + merges + 7 * added) < parse.MOST_VALUES


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: " * 100,
        "a: &a [x]\nb: *a",
        "a: " + "9" * 5000,
        "!!python/object:os.system x",
        "a: 1\nb: 2\na: 3",
        "a: [{b: 1, b: 1}]",
        "\x00",
        "x" * 300_000,
    ],
)
def test_hostile_yaml_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_yaml(text)
