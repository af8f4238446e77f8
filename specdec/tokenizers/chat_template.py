"""Chat messages to one prompt by the model's own Jinja template, run as Hugging Face runs them, in a sandbox."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.tokenizers.markup import Marks, Part, holds_any, joined, text_size
from specdec.tokenizers.messages import Form, checked_messages, form_of_source, forms_like, joined_text, plain, shaped
from specdec.tokenizers.template_limits import TemplateWorkError, make_environment
from specdec.tokenizers.tokenizer_limits import MOST_TEXT_BYTES

_PROBE = "zq7fy"


class _TemplateRefusalError(Exception):
    """The template called `raise_exception`."""


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's part for training; here it is its content and nothing more."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it without ClassVar

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja text.
        special_tokens: names such as `bos_token` and their text.

    Raises:
        ModelFormatError: the text is not a valid template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        environment = make_environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        environment.filters["tojson"] = environment.bounded(_to_json, "tojson")
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        try:
            self._template = environment.from_string(source)
        except unless_signalled(jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # Beyond Jinja's own errors: Python cannot compile what Jinja made of the template.
            raise ModelFormatError(f"the model's chat template cannot be read: {_one_line(error)}") from None
        self._environment = environment

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, dict[str, str]]]:
        return type(self), (self.source, self._special_tokens)  # what is compiled is not pickled or copied

    def render(
        self,
        messages: Sequence[Any],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt for `messages`.

        Args:
            messages: see `checked_messages`.
            add_generation_prompt: end with what begins the assistant's answer.
            continue_final_message: end with the last message's text, so that the answer continues with it.
            variables: what else the template may ask for, such as `tools`.

        Raises:
            InvalidArgumentError: the messages are malformed, or the template refuses them.
            ModelFormatError: the template fails.
        """
        switches = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        return joined(self.parts(messages, {**variables, **switches}))

    def parts(
        self,
        messages: Sequence[Any],
        variables: Mapping[str, Any],
        *,
        names: Collection[str] = (),
        assistant_names: Collection[str] = (),
    ) -> list[Part]:
        """The prompt for `messages`, in which the names of control tokens that messages spell are parts of their own.

        Args:
            messages: see `render`, as for errors.
            variables: for the template; its two switches may be among them.
            names: of control tokens.
            assistant_names: the same for messages of the assistant, which may hold tokens of its own.
        """
        if "messages" in variables:
            raise InvalidArgumentError("'messages' is not a variable that a chat template can be given")
        given = {name: plain(value) for name, value in variables.items()}
        continue_final_message = bool(given.pop("continue_final_message", False))
        add_generation_prompt = bool(given.pop("add_generation_prompt", not continue_final_message))
        checked = checked_messages(messages)
        if (size := text_size([checked, given])) > MOST_TEXT_BYTES:
            raise InvalidArgumentError(
                f"the chat has {size} characters: at most {MOST_TEXT_BYTES} are read, shorten it"
            )
        self._environment.start(size)  # one budget for all forms that are tried
        chat = self._shaped(checked, given, add_generation_prompt)
        is_marked = holds_any([chat, given], names)
        if not is_marked and not continue_final_message:
            return [Part(self._run(chat, given, add_generation_prompt), False)]
        marks = Marks(self.source, chat, given)
        if is_marked:
            given = marks.around(given, names)
            chat = [
                marks.around(message, assistant_names if message["role"] == "assistant" else names) for message in chat
            ]
        if continue_final_message:
            text = self._cut(chat, given, marks.here)
        else:
            text = self._run(chat, given, add_generation_prompt)
        return marks.parts(text, names) if is_marked else [Part(text, False)]

    def _shaped(
        self, messages: list[dict[str, Any]], variables: dict[str, Any], add_generation_prompt: bool
    ) -> list[dict[str, Any]]:
        """The messages in the first form that the template takes; in the likeliest one if it takes none."""
        tried: list[list[dict[str, Any]]] = []
        for form in forms_like(self._form):
            if (chat := shaped(messages, form)) not in tried:
                tried.append(chat)
        if len(tried) > 1:
            for chat in tried:
                with contextlib.suppress(InvalidArgumentError, ModelFormatError):
                    self._run(chat, variables, add_generation_prompt)
                    return chat
        return tried[0]

    def _cut(self, chat: list[dict[str, Any]], variables: dict[str, Any], here: str) -> str:
        """The prompt up to the end of the last message's text, which the character `here` marks."""
        if not chat[-1].get("content"):
            raise InvalidArgumentError("the last chat message has no text that an answer could continue with")
        content = chat[-1]["content"]
        if isinstance(content, str):
            ending: Any = f"{content}{here} "
        else:
            *others, last = content
            shown = f"{joined_text([last])}{here} "
            ending = [*others, shown if isinstance(last, str) else last | {"text": shown}]
        text = self._run([*chat[:-1], chat[-1] | {"content": ending}], variables, False)
        before, found, after = text.rpartition(here)
        if not found:
            raise InvalidArgumentError("the chat template leaves out the last message, so no answer can continue it")
        # A template that trims messages would have trimmed this one.
        return before if after.startswith(" ") else before.rstrip()

    def _run(self, chat: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], add_generation_prompt: bool) -> str:
        values = {"tools": None, "documents": None, **self._special_tokens, **variables}
        values |= {"messages": chat, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(values)
        except _TemplateRefusalError as refusal:
            raise InvalidArgumentError(
                f"the model's chat template refuses these messages: {_one_line(refusal)}"
            ) from None
        except TemplateWorkError as error:
            raise ModelFormatError(f"the model's chat template fails: it asks for too much work, {error}") from None
        except unless_signalled(Exception) as error:  # a template can fail in any way that Python can
            raise ModelFormatError(f"the model's chat template fails: {_one_line(error)}") from None

    @cached_property
    def _form(self) -> Form:
        """The form of messages that the template reads, found by trying both kinds of content."""
        form = form_of_source(self.source)
        as_text = self._tried(_PROBE)
        as_parts = self._tried([{"type": "text", "text": _PROBE}])
        reads_text = as_text is not None and _PROBE in as_text
        # A template that does not know parts may show the list itself, with the names of its fields.
        reads_parts = as_parts is not None and _PROBE in as_parts and _fields(as_parts) <= _fields(as_text or "")
        return replace(form, parts=reads_parts, text=reads_text or not reads_parts)

    def _tried(self, content: Any) -> str | None:
        try:
            return self._run([{"role": "user", "content": content}], {}, True)
        except (InvalidArgumentError, ModelFormatError):
            return None


def _fields(text: str) -> int:
    """How often the name of a part's field `type` is quoted."""
    return text.count("'type'") + text.count('"type"')


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefusalError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
