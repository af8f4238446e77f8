"""Readers of calls whose name stands outside the JSON of its arguments."""

from __future__ import annotations

from specdec.server.parsing.cursor import CallError, Cursor, Reading
from specdec.server.tools.calls import Calls
from specdec.server.tools.json_calls import read_calls, stream_object
from specdec.server.tools.markers import (
    DEEPSEEK_CALL,
    DEEPSEEK_CALL_END,
    DEEPSEEK_CALLS_END,
    DEEPSEEK_SEPARATOR,
    FENCE,
    FUNCTION_END,
    MISTRAL_ARGUMENTS,
    MISTRAL_ID,
    PARAMETER,
)
from specdec.server.tools.parameters import read_parameters


def read_function(cursor: Cursor, calls: Calls) -> Reading[None]:
    """What follows `<function=`: `NAME>...</function>`, its arguments an object or parameters in tags of their own."""
    name = (yield from cursor.until([">"]))[0].strip()
    if (yield from cursor.peek()).text == "{":
        calls.start(name)
        yield from stream_object(cursor, calls)
    else:
        yield from _check_next(cursor, PARAMETER, FUNCTION_END)
        calls.start(name)
        yield from read_parameters(cursor, calls, calls.tools.parameters.get(name, {}))
    calls.end()
    yield from cursor.has(FUNCTION_END, spaced=True)


def read_mistral(cursor: Cursor, calls: Calls) -> Reading[None]:
    """What follows `[TOOL_CALLS]`: a list of calls in JSON, or `NAME[ARGS]{...}`."""
    first = yield from cursor.peek()
    if first.text in ("[", "{"):
        yield from read_calls(cursor, calls)
        return
    name, marker = yield from cursor.until([MISTRAL_ARGUMENTS, MISTRAL_ID, "{"])
    if marker == MISTRAL_ID:
        yield from cursor.until([MISTRAL_ARGUMENTS])
    elif marker == "{":
        cursor.back(first._replace(text="{"))
    yield from _check_next(cursor, "{")
    calls.start(name.strip())
    yield from stream_object(cursor, calls)
    calls.end()


def read_deepseek(cursor: Cursor, calls: Calls) -> Reading[None]:
    """What follows the marker of one DeepSeek call: its name, a separator and an object; in older models "function", a
    separator, its name and an object in a block of Markdown."""
    while True:
        name, _ = yield from cursor.until([DEEPSEEK_SEPARATOR])
        if (yield from cursor.peek()).text != "{":
            name, _ = yield from cursor.until([f"{FENCE}json"])
        yield from _check_next(cursor, "{")
        calls.start(name.strip())
        yield from stream_object(cursor, calls)
        calls.end()
        for marker in (FENCE, DEEPSEEK_CALL_END):
            yield from cursor.has(marker, spaced=True)
        if (yield from cursor.has(DEEPSEEK_CALLS_END, spaced=True)):
            return
        if not (yield from cursor.has(DEEPSEEK_CALL, spaced=True)):
            return


def read_deepseek_calls(cursor: Cursor, calls: Calls) -> Reading[None]:
    """What follows the marker of all DeepSeek calls."""
    if not (yield from cursor.has(DEEPSEEK_CALL, spaced=True)):
        raise CallError
    yield from read_deepseek(cursor, calls)


def _check_next(cursor: Cursor, *markers: str) -> Reading[None]:
    """Refuse anything but one of the markers, which stays unread."""
    first = yield from cursor.peek()
    for marker in markers:
        if (yield from cursor.has(marker)):
            cursor.back(*(first._replace(text=one, is_control=False) for one in marker))
            return
    raise CallError
