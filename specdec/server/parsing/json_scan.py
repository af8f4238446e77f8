"""JSON checked character by character while it arrives: `JsonScan`, and `begun_object` for what broke off."""

from __future__ import annotations

import contextlib
import json
import re
from enum import Enum, auto
from typing import Any

MOST_DEPTH = 64
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_CHARACTERS = frozenset("0123456789+-.eE")
_WORDS = ("true", "false", "null")
_SPACE = frozenset(" \t\n\r")
_ESCAPES = frozenset('"\\/bfnrt')
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


class JsonError(ValueError):
    """The text is not JSON."""


class _Expects(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()  # after "[": the array may be empty
    NAME = auto()
    NAME_OR_END = auto()  # after "{"
    COLON = auto()
    COMMA_OR_END = auto()
    STRING = auto()
    ESCAPE = auto()
    UNICODE = auto()
    WORD = auto()
    NUMBER = auto()
    NOTHING = auto()


class JsonScan:
    """Follows one JSON value, an object, an array or a string, to its end.

    Models write line breaks and tabs into strings as they are. `push` returns them escaped, so that all it returned is
    a JSON text.

    Attributes:
        done: the value is complete.
    """

    def __init__(self) -> None:
        self.done = False
        self._expects = _Expects.VALUE
        self._open: list[str] = []  # "{" and "[", outermost first
        self._is_name = False  # the string is a name of an object
        self._digits = 0  # of a \u escape, still to come
        self._word = ""  # a number, or a literal such as true

    def push(self, character: str) -> str:
        """Take the next character and return it as JSON text.

        Raises:
            JsonError: no JSON value goes on like that, or it is nested more than 64 deep.
        """
        if self._expects is _Expects.NUMBER and character not in _NUMBER_CHARACTERS:
            if not _NUMBER.fullmatch(self._word):
                raise JsonError(f"{self._word[:20]!r} is not a number")
            self._end_value()
        if self._expects in (_Expects.STRING, _Expects.ESCAPE, _Expects.UNICODE):
            return self._in_string(character)
        if self._expects is _Expects.NUMBER:
            self._word += character
        elif self._expects is _Expects.WORD:
            self._in_word(character)
        elif character not in _SPACE:
            self._between(character)
        return character

    @property
    def is_in_text(self) -> bool:
        """The last character was part of a string or a name."""
        return self._expects in (_Expects.STRING, _Expects.ESCAPE, _Expects.UNICODE)

    @property
    def may_end(self) -> bool:
        """The value is complete when `brackets` follow."""
        return self._expects in (
            _Expects.COMMA_OR_END,
            _Expects.NAME_OR_END,
            _Expects.VALUE_OR_END,
            _Expects.NOTHING,
        )

    @property
    def brackets(self) -> str:
        """What ends all objects and arrays that are open."""
        return "".join({"{": "}", "[": "]"}[bracket] for bracket in reversed(self._open))

    def _in_string(self, character: str) -> str:
        if self._expects is _Expects.ESCAPE:
            if character == "u":
                self._expects, self._digits = _Expects.UNICODE, 4
            elif character in _ESCAPES:
                self._expects = _Expects.STRING
            else:
                raise JsonError(f"{character!r} cannot be escaped")
        elif self._expects is _Expects.UNICODE:
            if character not in _HEXADECIMAL:
                raise JsonError(f"{character!r} is not a hexadecimal digit")
            self._digits -= 1
            if not self._digits:
                self._expects = _Expects.STRING
        elif character == "\\":
            self._expects = _Expects.ESCAPE
        elif character == '"':
            if self._is_name:
                self._expects, self._is_name = _Expects.COLON, False
            else:
                self._end_value()
        elif character < " ":
            return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\u{ord(character):04x}")
        return character

    def _in_word(self, character: str) -> None:
        self._word += character
        if self._word in _WORDS:
            self._end_value()
        elif not any(word.startswith(self._word) for word in _WORDS):
            raise JsonError(f"{self._word!r} is not a value")

    def _between(self, character: str) -> None:
        expects = self._expects
        if character == '"' and expects in (_Expects.NAME, _Expects.NAME_OR_END):
            self._expects, self._is_name = _Expects.STRING, True
        elif character in "}]" and self._may_end(character):
            self._open.pop()
            self._end_value()
        elif character == ":" and expects is _Expects.COLON:
            self._expects = _Expects.VALUE
        elif character == "," and expects is _Expects.COMMA_OR_END:
            self._expects = _Expects.NAME if self._open[-1] == "{" else _Expects.VALUE
        elif expects in (_Expects.VALUE, _Expects.VALUE_OR_END):
            self._begin_value(character)
        else:
            raise JsonError(f"{character!r} is out of place")

    def _begin_value(self, character: str) -> None:
        if character in "{[":
            if len(self._open) == MOST_DEPTH:
                raise JsonError(f"is nested more than {MOST_DEPTH} deep")
            self._open.append(character)
            self._expects = _Expects.NAME_OR_END if character == "{" else _Expects.VALUE_OR_END
        elif character == '"':
            self._expects = _Expects.STRING
        elif not self._open:
            raise JsonError(f"{character!r} begins neither an object nor an array nor a string")
        elif character in "-0123456789":
            self._expects, self._word = _Expects.NUMBER, character
        else:
            self._expects, self._word = _Expects.WORD, ""
            self._in_word(character)

    def _may_end(self, bracket: str) -> bool:
        """Whether the innermost object or array may end here, with that bracket."""
        when_empty = _Expects.NAME_OR_END if bracket == "}" else _Expects.VALUE_OR_END
        is_own = bool(self._open) and self._open[-1] == {"}": "{", "]": "["}[bracket]
        return is_own and self._expects in (when_empty, _Expects.COMMA_OR_END)

    def _end_value(self) -> None:
        self._expects = _Expects.COMMA_OR_END if self._open else _Expects.NOTHING
        self.done = not self._open


def begun_object(text: str) -> dict[str, Any]:
    """The part of a JSON object whose text breaks off: all values that are complete."""
    scan, end, brackets = JsonScan(), 0, "{}"
    with contextlib.suppress(JsonError):
        for place, character in enumerate(text):
            scan.push(character)
            if scan.may_end:
                end, brackets = place + 1, scan.brackets
            elif character == "," and not scan.is_in_text:  # it ended a number
                end, brackets = place, scan.brackets
    try:
        value = json.loads(text[:end] + brackets, strict=False)
    except ValueError:  # a number of more digits than Python reads
        return {}
    return value if isinstance(value, dict) else {}
