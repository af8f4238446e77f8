"""Readers of calls whose name and arguments are in JSON: `{"name": "f", "arguments": {...}}`, alone or in a list."""

from __future__ import annotations

import json
from typing import Any

from specdec.server.parsing.cursor import SPACE, CallError, Cursor, Reading
from specdec.server.parsing.json_scan import JsonError, JsonScan
from specdec.server.parsing.pieces import Piece
from specdec.server.tools.calls import Calls

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
_BETWEEN = ",;"
_MOST_OTHER = 1024  # characters of a value that is neither name nor arguments


def read_calls(cursor: Cursor, calls: Calls, *, known: bool = False) -> Reading[None]:
    """One call, several one after the other, or a list of them.

    Args:
        cursor: before the first "{" or "[".
        calls: gets the calls.
        known: see `Calls.start`; then a call must have arguments, too.

    Raises:
        CallError: there is something else.
    """
    piece = yield from cursor.after_space()
    if piece.is_control or piece.text not in "{[":
        raise CallError
    is_list = piece.text == "["
    if is_list:
        yield from _expect(cursor, "{")
    yield from read_call(cursor, calls, known=known)
    while True:
        if is_list and (yield from cursor.has("]", spaced=True)):
            calls.settle()
            return
        skipped = yield from _skip(cursor, _BETWEEN)
        if not (yield from cursor.has("{")):
            cursor.back(*skipped)
            if is_list:
                raise CallError
            return
        yield from read_call(cursor, calls, known=known)


def _skip(cursor: Cursor, characters: str) -> Reading[list[Piece]]:
    """Read over white space and some other characters."""
    skipped: list[Piece] = []
    while True:
        piece = yield from cursor.next()
        if piece.is_control or piece.text not in SPACE + characters:
            cursor.back(piece)
            return skipped
        skipped.append(piece)


def read_call(cursor: Cursor, calls: Calls, *, known: bool) -> Reading[None]:
    """The rest of one call, after its "{"."""
    name: str | None = None
    held: str | None = None  # arguments before the name
    while True:
        piece = yield from cursor.after_space(",")
        if piece.text == "}" and not piece.is_control:
            break
        cursor.back(piece)
        field = json.loads((yield from read_string(cursor)))
        yield from _expect(cursor, ":")
        if field in _NAMES and name is None:
            name = yield from _read_name(cursor)
        elif field in _ARGUMENTS and name is not None and (yield from cursor.peek()).text == "{":
            calls.start(name, known=known)
            yield from stream_object(cursor, calls)
            yield from _leave_object(cursor)
            calls.end()
            return
        elif field in _ARGUMENTS:
            held = yield from _read_arguments(cursor)
        else:
            yield from _skip_value(cursor)
    if name is None or (known and held is None):
        raise CallError
    calls.start(name, known=known)
    calls.arguments(held or "{}")
    calls.end()


def _leave_object(cursor: Cursor) -> Reading[None]:
    """What follows the arguments of a call, up to its "}". Models forget that one; the call is complete without it."""
    while True:
        piece = yield from cursor.after_space(",")
        if piece.text == "}" and not piece.is_control:
            return
        cursor.back(piece)
        if piece.text != '"':
            return
        yield from read_string(cursor)
        yield from _expect(cursor, ":")
        yield from _skip_value(cursor)


def stream_object(cursor: Cursor, calls: Calls) -> Reading[None]:
    """The arguments of an open call, an object, written as they come.

    Raises:
        CallError: they are not an object.
    """
    scan = JsonScan()
    first = yield from cursor.after_space()
    if first.is_control or first.text != "{":
        raise CallError
    cursor.back(first)
    while not scan.done:
        piece = yield from cursor.next()
        if piece.is_control:
            continue
        try:
            calls.arguments(scan.push(piece.text))
        except JsonError:
            cursor.back(piece)
            raise CallError from None


def read_string(cursor: Cursor) -> Reading[str]:
    """A JSON string, quotes included."""
    piece = yield from cursor.after_space()
    if piece.is_control or piece.text != '"':
        raise CallError
    cursor.back(piece)
    return (yield from _read_scanned(cursor))


def _read_name(cursor: Cursor) -> Reading[str]:
    name: str = json.loads((yield from read_string(cursor)))
    return name


def _read_arguments(cursor: Cursor) -> Reading[str | None]:
    """Arguments as the text of an object; some models write that text into a string. None for null."""
    piece = yield from cursor.peek()
    if piece.text not in '{"':
        word = yield from _read_word(cursor)
        if word != "null":
            raise CallError
        return None
    text = yield from _read_scanned(cursor)
    if piece.text == '"':
        text = json.loads(text).strip() or "{}"
    return text if isinstance(_value(text), dict) else _refuse()


def _skip_value(cursor: Cursor) -> Reading[None]:
    piece = yield from cursor.peek()
    if piece.text in '{["':
        if len((yield from _read_scanned(cursor))) > _MOST_OTHER:
            raise CallError
    else:
        yield from _read_word(cursor)


def _read_scanned(cursor: Cursor) -> Reading[str]:
    """An object, an array or a string."""
    scan = JsonScan()
    text = []
    while not scan.done:
        piece = yield from cursor.next()
        if piece.is_control:
            continue
        try:
            text.append(scan.push(piece.text))
        except JsonError:
            raise CallError from None
    return "".join(text).strip()


def _read_word(cursor: Cursor) -> Reading[str]:
    """A number or a word such as true, without what comes after it."""
    word = ""
    while True:
        piece = yield from cursor.next()
        if piece.is_control or piece.text in SPACE or piece.text in ",}]":
            cursor.back(piece)
            _value(word)
            return word
        word += piece.text
        if len(word) > _MOST_OTHER:
            raise CallError


def _expect(cursor: Cursor, character: str) -> Reading[None]:
    piece = yield from cursor.after_space()
    if piece.is_control or piece.text != character:
        raise CallError


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _refuse()


def _refuse() -> Any:
    raise CallError
