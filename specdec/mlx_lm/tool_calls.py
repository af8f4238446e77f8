"""Tool calls in a model's answer, as mlx-lm's tokenizers read them: markers, and a parser of what is between them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.server.answer_parser import AnswerParser
from specdec.server.events import ToolArgumentsDelta, ToolCallStart
from specdec.server.tools.calls import ToolSet
from specdec.server.tools.formats import HARMONY, ToolFormat, tool_format
from specdec.server.tools.markers import (
    DEEPSEEK_CALLS,
    DEEPSEEK_CALLS_END,
    MISTRAL_CALLS,
    PIPED_CALL,
    PIPED_CALL_END,
    TOOL_CALL,
    TOOL_CALL_END,
)

# What begins and ends calls, for answers to be cut there; Mistral's end with the answer.
_MARKERS = (
    (TOOL_CALL, TOOL_CALL_END),
    (DEEPSEEK_CALLS, DEEPSEEK_CALLS_END),
    (MISTRAL_CALLS, ""),
    (PIPED_CALL, PIPED_CALL_END),
)
_CALLED = re.compile(r'"name"\s*:\s*"([^"]+)"|<function=([^>\s]+)>|^\s*([\w.-]+)\s*(?=\[ARGS\]|\{)', re.M)


class ToolCalls:
    """How a model writes tool calls, by its chat template.

    Attributes:
        start: what begins calls; None where the template shows none that is known.
        end: what ends them.
    """

    def __init__(self, chat_template: str | None) -> None:
        found = next((pair for pair in _MARKERS if pair[0] in (chat_template or "")), None)
        self._format: ToolFormat = tool_format(chat_template)
        is_known = found is not None and self._format is not HARMONY
        self.start: str | None = found[0] if found is not None and is_known else None
        self.end: str | None = found[1] if found is not None and is_known else None

    def parse(self, text: str, tools: Sequence[Any] | None = None) -> Any:
        """The call that a text between the markers is, as {"name": ..., "arguments": {...}}; a list of several.

        Args:
            text: without the markers.
            tools: as the chat template got them; their schemas tell the types of arguments that are written as text.

        Raises:
            InvalidArgumentError: it is not a call.
        """
        names = [next(filter(None, found.groups())) for found in _CALLED.finditer(text)]
        known = [tool for tool in tools or () if isinstance(tool, dict)]
        given = {tool.get("function", {}).get("name") for tool in known}
        known += [
            {"type": "function", "function": {"name": name}} for name in dict.fromkeys(names) if name not in given
        ]
        calls: list[dict[str, Any]] = []
        if known:
            parser = AnswerParser(self._format, ToolSet.of(known), None)
            for event in [*parser.feed(f"{self.start}{text}{self.end}"), *parser.finish()]:
                if isinstance(event, ToolCallStart):
                    calls.append({"name": event.name, "arguments": ""})
                elif isinstance(event, ToolArgumentsDelta):
                    calls[event.index]["arguments"] += event.text
        if not calls:
            raise InvalidArgumentError(f"this is not a tool call: {text[:80]!r}")
        for call in calls:
            call["arguments"] = json.loads(call["arguments"] or "{}")
        return calls[0] if len(calls) == 1 else calls
