"""An answer's events from its tokens, with reasoning, text and tool calls told apart: `AnswerParser`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdec.server.events import ChatEvent, TokenLogprob, TokenOrigin
from specdec.server.parsing.pieces import Piece, Stage
from specdec.server.parsing.reasoning import Reasoning, ReasoningFormat, ReasoningParser
from specdec.server.parsing.writer import EventWriter, TextStage
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
        self._thinks: ReasoningParser | HarmonyParser | None = None
        if form is HARMONY:
            calls = None if tools is None else Calls(self._writer, tools, whole=whole)
            is_over = reasoning is not None and reasoning[1] is Reasoning.OVER
            self._thinks = HarmonyParser(self._writer, calls, continues=is_over)
            self._first: Stage = self._thinks
            return
        self._first = TextStage(self._writer)
        if tools is not None:
            self._tools = ToolCallParser(
                form.readers, tools, bare=form.bare, parallel=parallel, whole=whole, writer=self._writer
            )
            self._first = self._tools
        if reasoning is not None and reasoning[1] is not Reasoning.OVER:
            self._thinks = ReasoningParser(*reasoning, self._writer, self._first)
            self._first = self._thinks

    @property
    def calls(self) -> int:
        """Tool calls so far, an incomplete one included."""
        return self._writer.calls

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far, its markers included."""
        return 0 if self._thinks is None else self._thinks.reasoning_tokens

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
        if text:
            self._first.push_text(text, token)
        if control:
            self._first.push(Piece(control, token, is_control=True))
        return self._writer.take()

    def finish(self) -> list[ChatEvent]:
        """The last events, at the end of the answer."""
        self._first.end()
        return self._writer.take()
