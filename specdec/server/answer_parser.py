"""An answer's events from its tokens, with reasoning, text and tool calls told apart: `AnswerParser`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdec.server.events import ChatEvent, TokenLogprob, TokenOrigin
from specdec.server.parsing.pieces import Piece
from specdec.server.parsing.reasoning import Reasoning, ReasoningFormat, ReasoningParser
from specdec.server.parsing.writer import EventWriter
from specdec.server.tools.calls import Calls, ToolSet
from specdec.server.tools.formats import HARMONY, ToolFormat
from specdec.server.tools.harmony import HarmonyParser
from specdec.server.tools.parser import ToolCallParser, new_call_id


class AnswerParser:
    """Takes the tokens of one answer and gives its events.

    Args:
        form: how the model writes calls.
        tools: the functions that it may call; None takes calls for text.
        reasoning: how the model marks reasoning, and where the answer begins; None takes reasoning for text.
        parallel: False takes one call only, and nothing after it.
        whole: hold every call back until it is complete, so that a malformed one is text as a whole.
        new_id: makes ids of calls.
    """

    def __init__(
        self,
        form: ToolFormat,
        tools: ToolSet | None,
        reasoning: tuple[ReasoningFormat, Reasoning] | None,
        *,
        parallel: bool = True,
        whole: bool = False,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._writer = EventWriter(new_id)
        self._tools: ToolCallParser | None = None
        self._reasoning: ReasoningParser | None = None
        self._harmony: HarmonyParser | None = None
        if form is HARMONY:
            calls = None if tools is None else Calls(self._writer, tools, whole=whole)
            is_over = reasoning is not None and reasoning[1] is Reasoning.OVER
            self._harmony = HarmonyParser(self._writer, calls, continues=is_over)
            return
        if tools is not None:
            self._tools = ToolCallParser(
                form.readers, tools, bare=form.bare, parallel=parallel, whole=whole, writer=self._writer
            )
        if reasoning is not None and reasoning[1] is not Reasoning.OVER:
            self._reasoning = ReasoningParser(*reasoning, self._writer, self._answer)

    @property
    def calls(self) -> int:
        """Tool calls so far, an incomplete one included."""
        return self._writer.calls

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far, its markers included."""
        if self._harmony is not None:
            return self._harmony.reasoning_tokens
        return 0 if self._reasoning is None else self._reasoning.tokens

    @property
    def is_full(self) -> bool:
        """Nothing that follows counts, so that the answer may end here."""
        return self._tools is not None and self._tools.is_full

    def feed(
        self,
        text: str,
        control: str = "",
        *,
        logprobs: Sequence[TokenLogprob] = (),
        origins: Sequence[TokenOrigin] = (),
    ) -> list[ChatEvent]:
        """The events that a token brings.

        Args:
            text: of the token; may be empty.
            control: name of the control token that the token is, which comes after the text.
            logprobs: of the token; they come with the event that has its text.
            origins: likewise.
        """
        token = self._writer.token(logprobs, origins)
        for character in text:
            self._push(Piece(character, token))
        if control:
            self._push(Piece(control, token, is_control=True))
        return self._writer.take()

    def finish(self) -> list[ChatEvent]:
        """The last events, at the end of the answer."""
        for stage in (self._harmony, self._reasoning, self._tools):
            if stage is not None:
                stage.end()
        return self._writer.take()

    def _push(self, piece: Piece) -> None:
        if self._harmony is not None:
            self._harmony.push(piece)
        elif self._reasoning is not None:
            self._reasoning.push(piece)
        else:
            self._answer(piece)

    def _answer(self, piece: Piece) -> None:
        if self._tools is not None:
            self._tools.push(piece)
        elif not piece.is_control:
            self._writer.text(piece)
