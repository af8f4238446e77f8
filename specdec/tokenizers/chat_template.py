"""Chat messages to one prompt by the model's own Jinja template, run as Hugging Face runs them, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.tokenizers.template_limits import TemplateWorkError, make_environment


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
        ModelFormatError: the text is no valid template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        environment = make_environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        environment.filters["tojson"] = environment.bounded(_to_json, "tojson")
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # Beyond Jinja's own errors: Python cannot compile what Jinja made of the template.
            raise ModelFormatError(f"the model's chat template cannot be read: {_one_line(error)}") from None
        self._environment = environment

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The prompt for `messages`.

        Args:
            messages: mappings with `role` and `content`, oldest first.
            add_generation_prompt: end with what begins the assistant's answer.

        Raises:
            InvalidArgumentError: the messages are malformed, or the template refuses them.
            ModelFormatError: the template fails.
        """
        checked = [_checked(message, position) for position, message in enumerate(messages)]
        if not checked:
            raise InvalidArgumentError("chat messages must hold at least one message")
        variables = {**self._special_tokens, "messages": checked, "add_generation_prompt": add_generation_prompt}
        self._environment.start()
        try:
            return self._template.render({"tools": None, "documents": None, **variables})
        except _TemplateRefusalError as refusal:
            raise InvalidArgumentError(
                f"the model's chat template refuses these messages: {_one_line(refusal)}"
            ) from None
        except TemplateWorkError as error:
            raise ModelFormatError(f"the model's chat template fails: it asks for too much work, {error}") from None
        except Exception as error:  # a template can fail in any way that Python can
            raise ModelFormatError(f"the model's chat template fails: {_one_line(error)}") from None


def _checked(message: Any, position: int) -> dict[str, str]:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise InvalidArgumentError(f"chat message {position} must have a 'role' and a 'content', both text")
    return dict(message)


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefusalError(message)


def _to_json(value: Any, *, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
