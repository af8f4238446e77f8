"""How the answers of a model are asked for and read, as its chat template shows: `AnswerForm`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specdec.errors import InvalidArgumentError
from specdec.server.answer_parser import AnswerParser
from specdec.server.events import ChatRequest
from specdec.server.parsing.reasoning import HARMONY, Reasoning, ReasoningFormat, reasoning_format
from specdec.server.tools.calls import ToolSet
from specdec.server.tools.constraint import MOST_CALLS, ControlId, call_grammar, json_grammar
from specdec.server.tools.formats import tool_format
from specdec.server.tools.prompt import Message, Render, ToolPrompt
from specdec.tokenizers.messages import checked_messages, last_text

if TYPE_CHECKING:
    from specdec.tokenizers import Tokenizer

_GRAMMARS = ("grammar", "regex")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class AnswerForm:
    """What a chat template says about tools and reasoning; one for each model.

    Args:
        source: of the template; None if there is none.
        render: writes messages by the template, see `Tokenizer.apply_chat_template`.
        control_id: tells which names are control tokens, see `Tokenizer.control_id`.
    """

    def __init__(self, source: str | None, render: Render, control_id: ControlId) -> None:
        self._source = source or ""
        self._control_id = control_id
        self._format = tool_format(source)
        self._reasoning = reasoning_format(source)
        self._prompt = ToolPrompt(self._format.layout, render, source=self._source)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> AnswerForm:
        """The form of a model's answers."""
        return cls(tokenizer.chat_template, tokenizer.apply_chat_template, tokenizer.control_id)

    def prompt(self, request: ChatRequest) -> tuple[list[Message], dict[str, Any]]:
        """Messages and variables for the chat template.

        Raises:
            InvalidArgumentError: a message is malformed, or `tool_choice` asks for a function that there is not.
        """
        messages = [self._message(message) for message in checked_messages(request.messages)]
        return self._prompt.messages(messages, self._tools(request))

    def options(self, request: ChatRequest, prompt: str) -> dict[str, Any]:
        """Options of the library that hold an answer to the form that the request asks for; see `grammar`.

        Raises:
            InvalidArgumentError: the request asks for two forms at once.
        """
        grammar, own = self.grammar(request, prompt), _own_grammar(request)
        if grammar is not None and own is not None:
            raise InvalidArgumentError(f"{own} and tool_choice contradict each other: leave out one of them")
        schema = _schema_of(request.options.get("response_format"))
        if grammar is None and own is None and schema is not None:
            grammar = self.json_grammar(request, prompt, schema)
        return {} if grammar is None else {"grammar": grammar, "response_format": None}

    def grammar(self, request: ChatRequest, prompt: str) -> str | None:
        """A grammar in Lark for an answer that has to be a call; None if it does not have to.

        Args:
            request: see `prompt`, as for errors.
            prompt: the last of its text, names of control tokens included.
        """
        tools = self._tools(request)
        if not tools or request.tool_choice == "auto":
            return None
        functions = dict(ToolSet.of(tools).parameters)
        most = MOST_CALLS if request.parallel_tool_calls else 1
        if isinstance(request.tool_choice, Mapping):
            name = request.tool_choice["name"]
            functions, most = {name: functions[name]}, 1
        return call_grammar(
            self._format.layout,
            functions,
            strict=[tool["function"]["name"] for tool in tools if tool["function"].get("strict") is True],
            most=most,
            control_id=self._control_id,
            reasoning=self._where(request, prompt),
        )

    def json_grammar(self, request: ChatRequest, prompt: str, schema: Mapping[str, Any]) -> str | None:
        """A grammar in Lark for an answer in JSON that has reasoning before it; None if no reasoning can come first.

        Args:
            request: see `grammar`.
            prompt: likewise.
            schema: JSON schema of the answer.
        """
        where = self._where(request, prompt)
        if where is None or where[1] is Reasoning.OVER:
            return None
        return json_grammar(schema, control_id=self._control_id, reasoning=where)

    def parser(self, request: ChatRequest, prompt: str) -> AnswerParser:
        """A parser for one answer; arguments as for `grammar`."""
        tools = self._tools(request)
        return AnswerParser(
            self._format,
            ToolSet.of(tools) if tools else None,
            self._where(request, prompt),
            parallel=request.parallel_tool_calls,
            whole=not request.streamed,
        )

    def _tools(self, request: ChatRequest) -> Sequence[Mapping[str, Any]]:
        """The tools that the model is shown."""
        choice = request.tool_choice
        if choice == "none":
            return ()
        names = [tool["function"]["name"] for tool in request.tools]
        if isinstance(choice, Mapping) and choice["name"] not in names:
            raise InvalidArgumentError(f"tool_choice asks for the function {choice['name']!r}, which is not in tools")
        if choice == "required" and not names:
            raise InvalidArgumentError("tool_choice 'required' needs at least one function in tools")
        return request.tools

    def _where(self, request: ChatRequest, prompt: str) -> tuple[ReasoningFormat, Reasoning] | None:
        form = self._reasoning
        if form is None:
            return None
        if request.continue_final:
            begun = last_text(request.messages)
            is_inside = form is not HARMONY and begun.rfind(form.begin) > begun.rfind(form.end)
            state = Reasoning.INSIDE if is_inside else Reasoning.OVER
        else:
            state = form.after(prompt)
        own = _own_grammar(request)
        if state is Reasoning.INSIDE and own is not None and form.end not in request.options[own]:
            state = Reasoning.OVER  # the grammar holds from the first token on, and does not end the reasoning
        return form, state

    def _message(self, message: Mapping[str, Any]) -> Message:
        """A message with the roles and fields that the template knows."""
        done = dict(message)
        if done.get("role") == "developer" and "developer" not in self._source:
            done["role"] = "system"
        thought = [done.pop(name) for name in _REASONING_FIELDS if name in done]
        if any(thought):
            name = next((one for one in _REASONING_FIELDS if one in self._source), None)
            if name is not None:
                done[name] = next(one for one in thought if one)
        return done


def _own_grammar(request: ChatRequest) -> str | None:
    """The option that holds the request's own grammar or regular expression."""
    return next((name for name in _GRAMMARS if request.options.get(name) is not None), None)


def _schema_of(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON schema that OpenAI's `response_format` asks for, if it does."""
    if not isinstance(response_format, Mapping):
        return None
    described = response_format.get("json_schema", response_format)
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if response_format.get("type") == "json_object" and schema is None:
        return {"type": "object"}
    return schema if isinstance(schema, Mapping) else None
