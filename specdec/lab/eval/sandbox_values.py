"""Plain values as messages and back: all that passes between a program of a model and the tests of that program.

A message is its length and one JSON object. Values of built-in types, and of a few types of the standard library, keep
their exact type; instances of subclasses become the type that they extend; anything else is refused. No class is looked
up by name and no code runs when a message is read, so neither side has to trust the other.

Containers are numbered and listed flat, so that values keep their shape when they share parts or contain themselves. An
answer repeats the containers of its call with their current contents: a change that a function made to its arguments
reaches the caller, and an argument that is returned is the same object.
"""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from typing import Any

MOST_BYTES = 16 << 20
_HEAD = 4  # bytes of a message's length
_EXACT = 1 << 53  # whole numbers below it are the same in every reader of JSON

_CHANGING: dict[str, type] = {
    one.__name__: one for one in (list, dict, set, bytearray, deque, Counter, defaultdict, OrderedDict)
}
_FIXED: dict[str, type] = {one.__name__: one for one in (tuple, frozenset, complex, range, Fraction, Decimal)}
# What the constructors of these take; those of others take anything.
_PARTS: dict[type, tuple[type, ...]] = {
    complex: (float, float),
    range: (int, int, int),
    Fraction: (int, int),
    Decimal: (str,),
}
_MISSING = object()


class MessageError(ValueError):
    """A message is malformed: `Writer` never makes one."""


class Writer:
    """Puts values into one message.

    Args:
        known: the numbered objects of the message that this one answers, see `read_objects`.

    Attributes:
        objects: the numbered objects, by number.
        entries: what each holds; None for one that is known already and cannot change.
    """

    def __init__(self, known: Sequence[Any] = ()) -> None:
        self.objects = list(known)
        self.entries: list[Any] = [None] * len(known)
        self._numbers = {id(value): number for number, value in enumerate(known)}
        for number, value in enumerate(known):
            if type(value).__name__ in _CHANGING:
                self.entries[number] = self._entry(value, type(value))

    def item(self, value: Any) -> Any:
        """What stands for a value in the message.

        Raises:
            TypeError: it, or something in it, is not plain data.
            RecursionError: it is nested too deep.
        """
        kind = _kind(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            whole = int.__index__(value)
            return whole if abs(whole) < _EXACT else ["int", hex(whole)]
        if kind is float:
            return ["float", float.hex(value)]
        if kind is str:
            text = str.__str__(value)
            return text if text.isascii() else ["str", text.encode("utf-8", "surrogatepass").hex()]
        if kind is bytes:
            return ["bytes", bytes.hex(value)]
        number = self._numbers.get(id(value))
        return ["at", self._add(value, kind) if number is None else number]

    def _add(self, value: Any, kind: type) -> int:
        if kind.__name__ in _FIXED:  # its parts come first: it is made of them
            entry = self._entry(value, kind)
            self.entries.append(entry)
        else:
            self.entries.append(None)
            entry = None
        number = len(self.objects)
        self.objects.append(value)
        self._numbers[id(value)] = number
        if entry is None:
            self.entries[number] = self._entry(value, kind)
        return number

    def _entry(self, value: Any, kind: type) -> list[Any]:
        entry: list[Any] = [kind.__name__]
        for part in _parts(value, kind):
            entry.append(self.item(part))  # a comprehension would take one more frame for each level of nesting
        return entry


def read_objects(known: Sequence[Any], entries: Any) -> list[Any]:
    """The numbered objects of a message. Those of the message that it answers, `known`, are brought up to date.

    Raises:
        MessageError: the entries are malformed.
    """
    if not isinstance(entries, list) or len(entries) < len(known):
        raise MessageError("objects are missing")
    objects = [*known, *[_MISSING] * (len(entries) - len(known))]
    try:
        for number in range(len(known), len(entries)):
            if (kind := _CHANGING.get(entries[number][0])) is not None:
                objects[number] = kind()
        for number in range(len(known), len(entries)):
            if objects[number] is _MISSING:
                objects[number] = _made(
                    _FIXED[entries[number][0]], [read_item(one, objects) for one in entries[number][1:]]
                )
        for value, entry in zip(objects, entries, strict=True):
            if type(value).__name__ in _CHANGING:
                if entry[0] != type(value).__name__:
                    raise MessageError("an object changed its type")
                _fill(value, [read_item(one, objects) for one in entry[1:]])
    except MessageError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise MessageError(f"an object is malformed: {error}") from None
    return objects


def read_item(item: Any, objects: Sequence[Any]) -> Any:
    """The value that an item stands for.

    Raises:
        MessageError: the item is malformed.
    """
    if item is None or isinstance(item, (bool, int, str)):
        return item
    try:
        tag, content = item
        match tag:
            case "int":
                return int(content, 16)
            case "float":
                return float.fromhex(content)
            case "str":
                return bytes.fromhex(content).decode("utf-8", "surrogatepass")
            case "bytes":
                return bytes.fromhex(content)
            case "at" if content >= 0 and (value := objects[content]) is not _MISSING:
                return value
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise MessageError(f"a value is malformed: {error}") from None
    raise MessageError("a value is malformed")


def send(channel: int, message: dict[str, Any]) -> None:
    """Write a message to a file descriptor.

    Raises:
        TypeError: it is too large.
        OSError: the reader is gone.
    """
    content = json.dumps(message).encode()
    if len(content) > MOST_BYTES:
        raise TypeError(f"values of more than {MOST_BYTES >> 20} MB do not pass")
    waiting = memoryview(len(content).to_bytes(_HEAD, "big") + content)
    while waiting:
        waiting = waiting[os.write(channel, waiting) :]


def receive(channel: int) -> dict[str, Any] | None:
    """Read a message from a file descriptor; None when the writer has closed.

    Raises:
        MessageError: what came is not a message.
    """
    if (head := _read(channel, _HEAD)) is None:
        return None
    size = int.from_bytes(head, "big")
    if size > MOST_BYTES:
        raise MessageError("a message is too large")
    if (content := _read(channel, size)) is None:
        return None
    try:
        message = json.loads(content)
    except (ValueError, RecursionError):
        raise MessageError("a message is not JSON") from None
    if not isinstance(message, dict):
        raise MessageError("a message is not a JSON object")
    return message


def _read(channel: int, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = os.read(channel, min(size - len(parts), 1 << 16))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


def _kind(value: Any) -> type:
    """The plain type that a value has or extends."""
    for kind in type(value).__mro__:
        if kind in (type(None), bool, int, float, str, bytes):
            return kind
        if kind is _CHANGING.get(kind.__name__) or kind is _FIXED.get(kind.__name__):
            return kind
    raise TypeError(f"{type(value).__name__!r} is not plain data")


def _parts(value: Any, kind: type) -> Iterable[Any]:
    """What a value holds, whatever methods a subclass has."""
    if issubclass(kind, dict):
        return chain.from_iterable(list(kind.items(value)))
    if kind is bytearray:
        return (bytes(value),)
    if kind is complex:
        return (value.real, value.imag)
    if kind is range:
        return (value.start, value.stop, value.step)
    if kind is Fraction:
        return (value.numerator, value.denominator)
    if kind is Decimal:
        return (str(value),)
    return list(kind.__iter__(value))  # type: ignore[attr-defined]


def _made(kind: type, parts: list[Any]) -> Any:
    wanted = _PARTS.get(kind)
    if wanted is None:
        return kind(parts)
    if tuple(map(type, parts)) != wanted:
        raise MessageError(f"a {kind.__name__} is malformed")
    return kind(*parts)


def _fill(value: Any, parts: list[Any]) -> None:
    """Let an object hold these parts, and nothing else."""
    if isinstance(value, dict):
        value.clear()
        for place in range(0, len(parts), 2):
            value[parts[place]] = parts[place + 1]
    elif isinstance(value, list):
        value[:] = parts
    elif isinstance(value, bytearray):
        (content,) = parts
        if type(content) is not bytes:
            raise MessageError("a bytearray is malformed")
        value[:] = content
    else:
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(parts)
