"""Name and help of a library option on the command line: `Flag`. The options themselves are in `options`."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specdec.interrupts import unless_signalled


@dataclass(frozen=True, slots=True)
class Flag:
    """An option on the command line.

    Attributes:
        kind: type of its value; bool for a switch to the value that is not the default, dict for KEY=VALUE and list for
            one value, both repeatable.
        metavar: what help calls the value.
        help: what it does.
        default: what help calls the default, where its value says nothing.
        name: of the flag, where it is not the option's own name.
        parse: from the text of one value to the value, where `kind` itself does not do it; raises ValueError.
    """

    kind: type
    metavar: str
    help: str
    default: str | None = None
    name: str | None = None
    parse: Callable[[str], Any] | None = None


def flag(
    kind: type,
    metavar: str,
    help: str,
    default: str | None = None,
    *,
    name: str | None = None,
    parse: Callable[[str], Any] | None = None,
) -> dict[str, Flag]:
    """Metadata of a field of `Options`; arguments are those of `Flag`."""
    return {"flag": Flag(kind, metavar, help, default, name, parse)}


def template_argument(text: str) -> tuple[str, Any]:
    """A variable of a chat template from "KEY=VALUE", where the value is JSON or else text.

    Raises:
        ValueError: no "=", or nothing before it.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"must be KEY=VALUE, not {text!r}")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:  # as Python writes them, too
        return name, words[value.lower()]
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def bias_argument(text: str) -> tuple[int, float]:
    """A token id and its bias from "ID=BIAS".

    Raises:
        ValueError: it is something else.
    """
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ValueError(f"must be ID=BIAS with a token id and a number, not {text!r}") from None


def format_argument(text: str) -> Mapping[str, Any]:
    """A response format from "text", "json_object", or JSON.

    Raises:
        ValueError: it is something else.
    """
    if text in ("text", "json_object"):
        return {"type": text}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"must be text, json_object, or a JSON object, not {text[:80]!r}")
    return value


def processor_argument(text: str) -> Callable[..., Any]:
    """The object that "MODULE:NAME" names.

    Raises:
        ValueError: there is none, or it cannot be called.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"must be MODULE:FUNCTION, not {text!r}")
    try:
        found = pkgutil.resolve_name(text)
    except unless_signalled(Exception) as error:
        raise ValueError(f"{text!r} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise ValueError(f"{text!r} must be a function, not {found!r}")
    return found  # type: ignore[no-any-return]
