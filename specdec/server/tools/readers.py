"""Readers of what follows the markers that begin tool calls, most of which are in JSON."""

from __future__ import annotations

from specdec.server.parsing.cursor import CallError, Cursor, Reading
from specdec.server.tools.calls import Calls
from specdec.server.tools.json_calls import read_calls
from specdec.server.tools.markers import FENCE, FUNCTION, PIPED_CALL_END, TOOL_CALL_END
from specdec.server.tools.named_calls import read_function


def read_bare(cursor: Cursor, calls: Calls) -> Reading[None]:
    """Calls without any marker, of functions that there are."""
    yield from read_calls(cursor, calls, known=True)


def read_json(cursor: Cursor, calls: Calls) -> Reading[None]:
    """Calls after a marker, with nothing after them."""
    yield from read_calls(cursor, calls)


def read_fenced(cursor: Cursor, calls: Calls) -> Reading[None]:
    """Calls in a block of Markdown, of functions that there are."""
    yield from cursor.has("json")
    yield from read_bare(cursor, calls)
    yield from cursor.has(FENCE, spaced=True)


def read_tool_call(cursor: Cursor, calls: Calls) -> Reading[None]:
    """What follows `<tool_call>`: JSON, or a function in a tag of its own."""
    if (yield from cursor.peek()).text in ("{", "["):
        yield from read_calls(cursor, calls)
    elif (yield from cursor.has(FUNCTION)):
        yield from read_function(cursor, calls)
    else:
        raise CallError
    yield from cursor.has(TOOL_CALL_END, spaced=True)


def read_piped(cursor: Cursor, calls: Calls) -> Reading[None]:
    """What follows `<|tool_call|>`, as Phi and Granite write it."""
    yield from read_calls(cursor, calls)
    yield from cursor.has(PIPED_CALL_END, spaced=True)
