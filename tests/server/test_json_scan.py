"""JSON followed character by character."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.server.parsing.json_scan import JsonError, JsonScan, begun_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def scanned(text: str) -> tuple[str, str]:
    """What the scan made of the value at the beginning of a text, and the rest."""
    scan, done = JsonScan(), ""
    for place, character in enumerate(text):
        if scan.done:
            return done, text[place:]
        done += scan.push(character)
    assert scan.done
    return done, ""


@given(st.lists(VALUES, max_size=4) | st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 1]))
def test_what_json_writes_is_followed_to_its_end(value: Any, indent: int | None) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        assert scanned(text + "]}, more") == (text, "]}, more")


@given(st.text(alphabet='{}[]",:\\ntrue0.-eE1 \n', max_size=12))
def test_nothing_but_json_is_taken(text: str) -> None:
    """Whatever the scan takes to its end is JSON for Python as well, and the other way round."""
    try:
        done, rest = scanned(text)
        taken = rest.strip() == ""
    except (JsonError, AssertionError):
        taken, done = False, ""
    try:
        value = json.loads(text, strict=False)
        expected = isinstance(value, (dict, list, str))
    except ValueError:
        expected = False
    assert taken == expected, text
    if taken:
        assert json.loads(done) == value


def test_line_breaks_in_strings_are_escaped() -> None:
    done, _ = scanned('{"code": "a\n\tb\r\x01"}')
    assert json.loads(done) == {"code": "a\n\tb\r\x01"}


@pytest.mark.parametrize(
    "text",
    [
        "{]",
        "[}",
        '{"a" 1}',
        '{"a": 1,}',
        "[1,]",
        "[01]",
        "[-]",
        "[1.]",
        "[nulL]",
        '["\\x"]',
        '["\\u12g4"]',
        "{a: 1}",
        "[True]",
        "1",
        "[" * 65,
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(JsonError):
        scanned(text + " ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "b", "c": [1, 2, {"d": tr', {"a": "b", "c": [1, 2, {}]}),
        ('{"a": "b,c", "d', {"a": "b,c"}),
        ('{"a": 12', {}),
        ('{"a": 12,', {"a": 12}),
        ('{"a": {}}', {"a": {}}),
        ('{"a": oops', {}),
        ("[1, 2]", {}),
        ("", {}),
        ('{"a": ' + "1" * 5000 + ", ", {}),
    ],
)
def test_what_is_complete_of_an_object(text: str, expected: Any) -> None:
    assert begun_object(text) == expected
