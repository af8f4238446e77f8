"""Options of the library (`specdec.Options`) on the command line, and files that stand for the values of some."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from specdec.engine.flags import processor_argument
from specdec.engine.grammar import check_grammar
from specdec.engine.options import DEFAULTS, FLAGS, Options, flag_of
from specdec.engine.plugin_names import check_plugins
from specdec.errors import InvalidArgumentError
from specdec.parse import ParseError, parse_json
from specdec.read_file import read_bytes


def add_option(group: argparse._ActionsContainer, name: str) -> None:
    """An option of the library under its own name; the library's default holds."""
    flag = FLAGS[name]
    if flag.kind is bool:
        action = "store_false" if DEFAULTS[name] else "store_true"
        group.add_argument(flag_of(name), dest=name, action=action, default=None, help=flag.help)
        return
    default = flag.default or DEFAULTS[name]
    parse = flag.kind if flag.parse is None else _parser_of(flag.parse)
    if flag.kind in (dict, list):
        parse = str if flag.parse is None else parse
        group.add_argument(flag_of(name), dest=name, action="append", type=parse, metavar=flag.metavar, help=flag.help)
    else:
        description = f"{flag.help} (default: {default})"
        group.add_argument(flag_of(name), dest=name, type=parse, metavar=flag.metavar, help=description)


def add_shaping(group: argparse._ArgumentGroup) -> None:
    """Penalties, biases, and what an answer must follow."""
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logits_processors"):
        add_option(group, name)
    given = group.add_mutually_exclusive_group()
    add_option(given, "response_format")
    given.add_argument("--json-schema", metavar="FILE", help="JSON schema that the answer must follow")
    add_option(given, "grammar")
    given.add_argument("--grammar-file", metavar="FILE", help="the same, in a file")
    add_option(given, "regex")


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as arguments of `specdec.stream`.

    Raises:
        InvalidArgumentError: a file cannot be read.
    """
    given = {name: value for name in FLAGS if (value := getattr(arguments, name)) is not None}
    options = {name: dict(value) if FLAGS[name].kind is dict else value for name, value in given.items()}
    if arguments.json_schema is not None:
        text = _text_of("--json-schema", arguments.json_schema)
        try:
            schema = parse_json(text)
        except ParseError as error:
            raise InvalidArgumentError(f"--json-schema {arguments.json_schema} {error}") from None
        if not isinstance(schema, dict | bool):
            raise InvalidArgumentError(f"--json-schema {arguments.json_schema} must hold a JSON object")
        options["response_format"] = {"type": "json_schema", "schema": schema}
    if arguments.grammar_file is not None:
        options["grammar"] = _text_of("--grammar-file", arguments.grammar_file)
    return options


def check_options(options: dict[str, Any]) -> None:
    """Refuse values that need no model to be refused.

    Raises:
        InvalidArgumentError: one of them is out of range, or a grammar has a mistake.
        UnknownNameError: no such policy, drafter or view.
    """
    given = Options(**options)
    check_plugins(given)
    grammar = given.asked_grammar
    if grammar is not None:
        check_grammar(grammar)


def _text_of(option: str, path: str) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise InvalidArgumentError(f"{option}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"{option}: {path} is not UTF-8") from None


def _parser_of(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type that says what is wrong in the words of `parse`."""

    def parsed(text: str) -> Any:
        if parse is processor_argument and "" not in sys.path:
            sys.path.insert(0, "")  # modules of the current folder, as Python itself would find them
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
