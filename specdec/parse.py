"""The one parser of JSON and YAML that others wrote, with bounds on depth, numbers and text; and `foreign`, which
turns whatever a foreign library raises over a bad file into one of our errors."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import yaml

from specdec.checks import is_unicode
from specdec.errors import ModelFormatError, SpecdecError
from specdec.interrupts import is_from_signal_handler, unless_signalled

MOST_DEPTH = 64
MOST_YAML_BYTES = 1 << 18
# Far above every file of a model: Python objects take up to 40 bytes for each byte of text that names them.
MOST_CONTAINERS, MOST_VALUES = 1 << 21, 1 << 23
_MOST_WHOLE = 1 << 64
_MOST_DIGITS = 20
_SURROGATE = re.compile(r"\\u[dD][89abAB]")
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)


class ParseError(ValueError):
    """The text is not JSON or YAML, or exceeds a bound; the message says what is wrong, without the file's name."""


def parse_json(content: bytes | str, *, strict: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        content: UTF-8 text.
        strict: refuse what Python reads beyond the standard: NaN, infinite numbers, and names that an object holds
            twice.

    Raises:
        ParseError: it is not JSON, is nested more than 64 deep, holds more than 2 million objects and arrays or 8
            million values, a whole number of more than 64 bits, or text with half a surrogate pair.
    """
    hooks: dict[str, Any] = {}
    if strict:
        hooks = {"parse_constant": _constant, "parse_float": _finite, "object_pairs_hook": _distinct}
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        if _is_too_much(text) and _is_too_much(_JSON_TEXT.sub("", text)):
            raise ParseError(f"holds more than {MOST_CONTAINERS} objects and arrays, or {MOST_VALUES} values")
        value = json.loads(text, parse_int=_whole, **hooks)
    except ParseError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except unless_signalled(ValueError):
        raise ParseError("is not valid JSON") from None
    _check(value, texts=_SURROGATE.search(text) is not None)
    return value


def parse_yaml(content: bytes | str) -> Any:
    """The value of a YAML text, plain values only.

    Args:
        content: UTF-8 text of at most 256 KiB.

    Raises:
        ParseError: it is not YAML, is larger or nested more than 64 deep, holds aliases, a key twice, or a whole number
            of more than 64 bits.
    """
    if len(content) > MOST_YAML_BYTES:
        raise ParseError(f"is larger than {MOST_YAML_BYTES >> 10} KiB")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = yaml.load(text, _Loader)  # a SafeLoader
    except ParseError:
        raise
    except unless_signalled(yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError):
        raise ParseError("is not valid YAML") from None
    _check(value, texts=True)
    return value


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Around code that reads what others wrote: whatever it raises becomes a `ModelFormatError` about `what`.

    Our own errors, a shortage of memory, interrupts, and what a caller's signal handler raises pass. A panic of a
    library in Rust comes as a BaseException of pyo3's and is caught by its name.

    Raises:
        ModelFormatError: the block raised anything else.
    """
    try:
        yield
    except (SpecdecError, MemoryError):
        raise
    except OSError as error:
        if is_from_signal_handler(error):
            raise
        raise ModelFormatError(f"cannot read {error.filename or what}: {error.strerror or error}") from None
    except Exception as error:
        if is_from_signal_handler(error):
            raise
        _refuse(what, error)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        _refuse(what, error)


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Around code in Rust that may panic while a file is read: its own report of that would go to standard error."""
    with suppress(OSError, ValueError, AttributeError):  # full or closed
        sys.stderr.flush()  # type: ignore[union-attr]
    try:
        saved = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _refuse(what: str, error: BaseException) -> NoReturn:
    # What a library says may hold anything that the file holds.
    said = " ".join(str(error).encode(errors="replace").decode().split())[:200]
    raise ModelFormatError(f"{what} cannot be read: {said or type(error).__name__}") from None


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS + 1 or abs(value := int(digits)) > _MOST_WHOLE:
        raise ParseError(f"holds a whole number of more than 64 bits, {digits[:12]}…")
    return value


def _constant(word: str) -> NoReturn:
    raise ParseError(f"holds {word}, which is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ParseError(f"holds a number that is too large, {digits[:12]}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ParseError(f"holds {twice[:40]!r} twice in one object")
    return found


def _is_too_much(text: str) -> bool:
    """Whether a JSON text, by its punctuation, has more parts than are read. Its strings may hold punctuation too."""
    return text.count("[") + text.count("{") > MOST_CONTAINERS or text.count(",") + text.count(":") > MOST_VALUES


def _check(value: Any, *, texts: bool) -> None:
    """Refuse what is nested too deep, and, with `texts`, text that no encoding can write."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise _too_deep()
        if texts:
            for one in level:
                parts = (*one, *one.values()) if isinstance(one, dict) else one if isinstance(one, list) else (one,)
                if not all(is_unicode(part) for part in parts if isinstance(part, str)):
                    raise ParseError("holds text that is not valid Unicode: half a surrogate pair")
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]


def _too_deep() -> ParseError:
    return ParseError(f"is nested more than {MOST_DEPTH} deep")


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values with bounds. Depth is counted where nodes are composed, before any recursion of
    Python's own is exhausted; aliases, which can stand for more than a memory holds, are refused."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ParseError("holds an alias, which is not read")
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _too_deep()
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ParseError(f"holds {twice[1][:40]!r} twice in one mapping")
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > 66:
            raise ParseError("holds a whole number of more than 64 bits")
        value = super().construct_yaml_int(node)
        if abs(value) > _MOST_WHOLE:
            raise ParseError("holds a whole number of more than 64 bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
