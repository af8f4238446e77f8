"""What a model thinks before it answers, kept apart from the answer: `reasoning_format` and `ReasoningParser`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from specdec.server.parsing.pieces import Piece, Search, Stage, push_each
from specdec.server.parsing.writer import EventWriter


class Reasoning(Enum):
    """Where an answer begins: before reasoning that may come, inside it, or after it."""

    POSSIBLE = auto()
    INSIDE = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks its reasoning, which precedes its answer.

    Attributes:
        begin: marker before it; some chat templates write it at the end of the prompt.
        end: marker after it.
    """

    begin: str
    end: str

    def after(self, prompt: str) -> Reasoning:
        """Where the answer to a prompt begins.

        Args:
            prompt: its text, or the last part of it, names of control tokens included.
        """
        text = prompt.rstrip()
        if text.endswith(self.begin):
            return Reasoning.INSIDE
        return Reasoning.OVER if text.endswith(self.end) else Reasoning.POSSIBLE


_FORMATS = (
    ReasoningFormat("<think>", "</think>"),
    ReasoningFormat("[THINK]", "[/THINK]"),
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
)
# gpt-oss writes every part of an answer as a message of its own, see `harmony`.
HARMONY = ReasoningFormat("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")


def reasoning_format(chat_template: str | None) -> ReasoningFormat | None:
    """How the model of a chat template marks its reasoning; None if the template mentions no such marker.

    Templates of models that think leave out the reasoning of earlier turns, or close it when thinking is turned off.
    """
    text = chat_template or ""
    if "<|channel|>" in text and "<|message|>" in text:
        return HARMONY
    return next((one for one in _FORMATS if one.end in text), None)


class ReasoningParser:
    """Takes reasoning out of an answer.

    White space around the reasoning is left out, and line breaks between it and the answer.

    Args:
        form: the markers.
        state: where the answer begins.
        writer: gets the reasoning.
        answer: gets the answer.

    Attributes:
        reasoning_tokens: tokens of the reasoning so far, markers included.
    """

    def __init__(self, form: ReasoningFormat, state: Reasoning, writer: EventWriter, answer: Stage) -> None:
        self._begin, self._end = Search([form.begin]), Search([form.end])
        self._state, self._writer, self._answer = state, writer, answer
        self._is_first = True  # the next character is the first one of the reasoning or, after it, of the answer
        self.reasoning_tokens = 0

    def push(self, piece: Piece) -> None:
        """Take the next piece of the answer."""
        if self._state is Reasoning.INSIDE:
            self._think(piece)
        elif self._state is Reasoning.POSSIBLE:
            self._try_to_begin(piece)
        elif self.reasoning_tokens and self._is_first and piece.text in "\r\n":
            self._writer.skip([piece])
        else:
            self._is_first = False
            self._answer.push(piece)

    def push_text(self, text: str, token: int) -> None:
        """Take the next characters, all of one token."""
        if self._is_first or self._state is Reasoning.POSSIBLE:
            push_each(self, text, token)
        elif self._state is Reasoning.OVER:
            self._answer.push_text(text, token)
        elif self._end.passes(text):
            self.reasoning_tokens = token + 1
            self._writer.reasoning(text, token)
        else:
            push_each(self, text, token)

    def end(self) -> None:
        """The answer is complete."""
        held = (self._end if self._state is Reasoning.INSIDE else self._begin).finish()
        if self._state is Reasoning.INSIDE:
            self._show(held)
        else:
            self._pass_on(held)
        self._answer.end()

    def _try_to_begin(self, piece: Piece) -> None:
        released, found = self._begin.push(piece)
        if found and not released:
            self._state = Reasoning.INSIDE
            self.reasoning_tokens = piece.token + 1
            self._writer.skip([piece])
        elif released or piece.is_control:
            # Reasoning comes first or not at all.
            self._state, self._is_first = Reasoning.OVER, False
            self._pass_on([*released, *self._begin.finish(), *([piece] if piece.is_control else [])])

    def _think(self, piece: Piece) -> None:
        self.reasoning_tokens = piece.token + 1
        released, found = self._end.push(piece)
        self._show(released)
        if found:
            self._state, self._is_first = Reasoning.OVER, True
            self._writer.skip([piece])

    def _show(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if not (self._is_first and piece.text.isspace()):
                self._is_first = False
                self._writer.reasoning(piece.text, piece.token)

    def _pass_on(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._answer.push(piece)
