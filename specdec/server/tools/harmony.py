"""Answers of gpt-oss, which are messages on channels: `HarmonyParser`.

An answer is `<|channel|>analysis<|message|>TEXT<|end|>`, then `<|start|>assistant`, then the next message. A message's
header names the channel and, after `to=`, the function that the message calls. Source: OpenAI's description of the
format.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from specdec.server.parsing.cursor import CallError
from specdec.server.parsing.json_scan import JsonError, JsonScan
from specdec.server.parsing.pieces import Piece, push_each
from specdec.server.parsing.writer import EventWriter
from specdec.server.tools.calls import Calls

_MESSAGE, _START = "<|message|>", "<|start|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.:/-]+)")


class _Part(Enum):
    HEADER = auto()
    REASONING = auto()
    TEXT = auto()
    CALL = auto()


class HarmonyParser:
    """Takes an answer apart into reasoning, text and tool calls.

    Args:
        writer: gets the events.
        calls: gets the tool calls; None takes them for text.
        continues: the answer goes on inside a message for the user.

    Attributes:
        reasoning_tokens: tokens of messages on the channel for reasoning, headers included.
    """

    def __init__(self, writer: EventWriter, calls: Calls | None, *, continues: bool = False) -> None:
        self._writer, self._calls = writer, calls
        self._part = _Part.TEXT if continues else _Part.HEADER
        self._header: list[Piece] = []
        self._name = ""
        self._scan = JsonScan()
        self._raw: list[Piece] = []  # of a call
        self._uncounted = 0  # first token that is not counted as reasoning
        self.reasoning_tokens = 0

    def push(self, piece: Piece) -> None:
        """Take the next piece of the answer."""
        before = self._part
        if self._part is _Part.HEADER and not (piece.is_control and piece.text in (_MESSAGE, *_ENDS)):
            self._header.append(piece)
        elif not piece.is_control:
            self._take(piece)
        elif piece.text == _MESSAGE:
            self._begin_message()
        elif piece.text in _ENDS:
            self._end_message()
        if _Part.REASONING in (before, self._part) and piece.token >= self._uncounted:
            self.reasoning_tokens += 1
            self._uncounted = piece.token + 1

    def push_text(self, text: str, token: int) -> None:
        """Take the next characters, all of one token."""
        push_each(self, text, token)

    def end(self) -> None:
        """The answer is complete."""
        if self._part is _Part.HEADER:
            for piece in self._header:
                if not piece.is_control:
                    self._writer.text(piece.text, piece.token)
        self._end_message()

    def _begin_message(self) -> None:
        header = "".join(piece.text for piece in self._header)
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._writer.skip(self._header)
        if recipient is not None and self._calls is not None:
            self._part, self._name = _Part.CALL, recipient[1]
            self._scan, self._raw = JsonScan(), []
        elif channel is not None and channel[1] == "analysis":
            self._part = _Part.REASONING
            self.reasoning_tokens += len({piece.token for piece in self._header})
        else:
            self._part = _Part.TEXT
        self._header = []

    def _end_message(self) -> None:
        if self._part is _Part.CALL and self._calls is not None and self._calls.is_open:
            if self._scan.done:
                self._calls.end()
            else:
                self._calls.flush()
                self._calls.drop()
        self._part, self._header = _Part.HEADER, []

    def _take(self, piece: Piece) -> None:
        if self._part is _Part.REASONING:
            self._writer.reasoning(piece.text, piece.token)
        elif self._part is _Part.TEXT:
            self._writer.text(piece.text, piece.token)
        else:
            self._raw.append(piece)
            try:
                self._call(piece)
            except (CallError, JsonError):
                self._give_up()

    def _call(self, piece: Piece) -> None:
        assert self._calls is not None
        if not self._calls.is_open:
            if piece.text.isspace():
                return
            if piece.text != "{":
                raise CallError
            self._calls.start(self._name)
        self._calls.arguments(self._scan.push(piece.text))
        if self._calls.is_written:
            self._writer.skip([piece])

    def _give_up(self) -> None:
        """The call is malformed: what has not been written of it, and the rest of the message, is text."""
        assert self._calls is not None
        pieces = self._raw[-1:] if self._calls.is_written else self._raw
        self._calls.drop()
        self._part = _Part.TEXT
        for piece in pieces:
            self._writer.text(piece.text, piece.token)
