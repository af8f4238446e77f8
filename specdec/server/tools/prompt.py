"""Tools, calls and their results in the form that a model's chat template reads: `ToolPrompt`."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.server.tools.layout import Layout
from specdec.tokenizers.messages import joined_text

Message = dict[str, Any]
Render = Callable[..., str]
"""See `Tokenizer.apply_chat_template`."""

_PROBE = "zq7fy"
_SHORT_ID = 9  # characters that Mistral's templates demand
_DIGITS = string.digits + string.ascii_letters
_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "A function.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "A text."}}},
    },
}


class ToolPrompt:
    """Brings a conversation with tools into a form that a chat template writes out in full.

    Templates differ in what they read. What one leaves out (the functions that there are, calls, their results) goes
    into the texts of messages.

    Args:
        layout: the text of calls.
        render: writes messages by the template.
        names: variables of the template that take the tools, by preference.
    """

    def __init__(self, layout: Layout, render: Render, *, source: str = "") -> None:
        self._layout, self._render = layout, render
        self._variable = next((one for one in ("xml_tools", "tools") if one in source), "tools")

    def messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Message], dict[str, Any]]:
        """The messages, and variables for the template.

        Args:
            messages: in OpenAI's form.
            tools: that the model may call, in OpenAI's form; none at all leaves the messages' own calls as they are.
        """
        has_calls = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        done = [dict(message) for message in messages]
        if has_calls:
            done = self._with_calls(done)
        if not tools:
            return done, {}
        if self._reads_tools:
            return done, {self._variable: [dict(tool) for tool in tools]}
        return self._with_instructions(done, self._instructions(tools)), {}

    def _with_calls(self, messages: list[Message]) -> list[Message]:
        if not self._reads_calls:
            messages = [self._call_as_text(message) for message in messages]
        if not (self._reads_calls and self._reads_results):
            messages = _results_as_text(messages)
        return [_with_short_ids(message) for message in messages] if self._wants_short_ids else messages

    def _call_as_text(self, message: Message) -> Message:
        calls = message.get("tool_calls")
        if not isinstance(calls, Sequence) or not calls:
            return message
        written = self._layout.written([(call["function"]["name"], _arguments(call)) for call in calls])
        texts = [text for text in (joined_text(message.get("content")), written) if text]
        return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": "\n".join(texts)}

    def _with_instructions(self, messages: list[Message], instructions: str) -> list[Message]:
        first = messages[0]
        if first.get("role") == "system":
            return [first | {"content": f"{joined_text(first.get('content'))}\n\n{instructions}"}, *messages[1:]]
        if self._reads_system:
            return [{"role": "system", "content": instructions}, *messages]
        if first.get("role") == "user":
            return [first | {"content": f"{instructions}\n\n{joined_text(first.get('content'))}"}, *messages[1:]]
        return messages

    def _instructions(self, tools: Sequence[Mapping[str, Any]]) -> str:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self._layout.written([("FUNCTION", {"ARGUMENT": "VALUE"})])
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query. These are the functions, as "
            f"JSON:\n<tools>\n{listed}\n</tools>\n\nTo call a function, answer with its name and arguments in this "
            f"form:\n{example}"
        )

    @cached_property
    def _reads_tools(self) -> bool:
        return _PROBE in self._tried([_user()], **{self._variable: [_TOOL]})

    @cached_property
    def _reads_calls(self) -> bool:
        return f"{_PROBE}-argument" in self._conversation(_SHORT_ID)

    @cached_property
    def _reads_results(self) -> bool:
        return f"{_PROBE}-result" in self._conversation(_SHORT_ID)

    @cached_property
    def _wants_short_ids(self) -> bool:
        return bool(self._conversation(_SHORT_ID)) and not self._conversation(24)

    @cached_property
    def _reads_system(self) -> bool:
        return _PROBE in self._tried([{"role": "system", "content": _PROBE}, _user()])

    def _conversation(self, id_length: int) -> str:
        """A call and its result, written by the template; nothing if it refuses them."""
        call = {"name": _PROBE, "arguments": json.dumps({"x": f"{_PROBE}-argument"})}
        name = "0" * id_length
        messages = [
            _user(),
            {"role": "assistant", "content": "", "tool_calls": [{"id": name, "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": name, "name": _PROBE, "content": f"{_PROBE}-result"},
        ]
        return self._tried(messages, **({self._variable: [_TOOL]} if self._reads_tools else {}))

    def _tried(self, messages: Sequence[Message], **variables: Any) -> str:
        try:
            return self._render(messages, **variables)
        except (InvalidArgumentError, ModelFormatError):
            return ""


def _user() -> Message:
    return {"role": "user", "content": "Hello."}


def _results_as_text(messages: Sequence[Message]) -> list[Message]:
    """Results of tools as messages of the user, joined with what the user says next."""
    done: list[Message] = []
    for message in messages:
        is_result = message.get("role") == "tool"
        if is_result:
            text = f"<tool_response>\n{joined_text(message.get('content'))}\n</tool_response>"
            message = {"role": "user", "content": text, _PROBE: True}
        if message.get("role") == "user" and done and done[-1].get(_PROBE):
            done[-1]["content"] += "\n" + joined_text(message.get("content"))
            if not is_result:
                done[-1].pop(_PROBE)
        else:
            done.append(message)
    for message in done:
        message.pop(_PROBE, None)
    return done


def _with_short_ids(message: Message) -> Message:
    """Ids of calls as nine letters and digits, the same for equal ids."""
    done = dict(message)
    if isinstance(done.get("tool_call_id"), str):
        done["tool_call_id"] = short_id(done["tool_call_id"])
    if isinstance(done.get("tool_calls"), Sequence):
        done["tool_calls"] = [call | {"id": short_id(str(call.get("id", "")))} for call in done["tool_calls"]]
    return done


def short_id(name: str) -> str:
    """Nine letters and digits for an id of any form; itself if it has that form."""
    if len(name) == _SHORT_ID and name.isascii() and name.isalnum():
        return name
    number = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8])
    digits = []
    for _ in range(_SHORT_ID):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(digits)


def _arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {"arguments": arguments}
    return arguments if isinstance(arguments, Mapping) else {}
