"""Names of control tokens in the text of chat messages, kept apart from those that a chat template writes itself.

Before a template runs, each such name in a message is put between two marks; in what it writes, a name between marks is
text and every other name is the token. Templates compare, cut and join messages as before, since what they compare with
are names of roles and the like, which hold no control token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from specdec.errors import InvalidArgumentError

# Characters that no text means anything by: noncharacters first, then the private use area.
_CANDIDATES = (range(0xFDD0, 0xFDF0), range(0xE000, 0xF900))


class Part(NamedTuple):
    """A part of a prompt.

    Attributes:
        text: its text.
        is_literal: names of control tokens in it are text.
    """

    text: str
    is_literal: bool


class Marks:
    """Marks for the messages of one prompt.

    Args:
        values: everything that the template is given; no mark is a character of it.

    Raises:
        InvalidArgumentError: the values hold every character that a mark could be.
    """

    def __init__(self, *values: Any) -> None:
        used = set(chain.from_iterable(chain.from_iterable(_strings(value) for value in values)))
        free = (chr(code) for code in chain(*_CANDIDATES) if chr(code) not in used)
        try:
            self.begin, self.end, self.here = (next(free) for _ in range(3))
        except RuntimeError:  # a generator that asks an exhausted one
            raise InvalidArgumentError("the messages hold every private character of Unicode: leave some out") from None

    def around(self, value: Any, names: Collection[str]) -> Any:
        """`value` with marks around every name in its strings, keys of mappings left alone."""
        if not names:
            return value
        pattern = _alternatives(names)
        return _map_strings(value, lambda text: pattern.sub(lambda found: self.begin + found[0] + self.end, text))

    def parts(self, text: str, names: Collection[str]) -> list[Part]:
        """What a template wrote, cut at the marks; marks that it tore apart are left out."""
        for mark in (self.begin, self.end):
            text = text.replace(f"\\u{ord(mark):04x}", mark)  # as JSON writes it where only ASCII is wanted
        pattern = re.compile(f"{self.begin}({_alternatives(names).pattern}){self.end}|[{self.begin}{self.end}]")
        pieces = pattern.split(text)
        # With one group in the pattern, the odd pieces are names, or None for a mark by itself.
        return [Part(piece, position % 2 == 1) for position, piece in enumerate(pieces) if piece]


def holds_any(value: Any, names: Collection[str]) -> bool:
    """Whether one of the names is in one of the strings of `value`."""
    return any(name in text for text in _strings(value) for name in names)


def text_size(value: Any) -> int:
    """Characters of all texts in a value."""
    return sum(map(len, _strings(value)))


def _alternatives(names: Collection[str]) -> re.Pattern[str]:
    # Longest first: of two names that begin alike the longer one is meant.
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name))))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(_strings(item) for pair in value.items() for item in pair)
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(_strings(item) for item in value)


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, change) for item in value]
    return value


def joined(parts: Iterable[Part]) -> str:
    """The text of all parts."""
    return "".join(part.text for part in parts)
