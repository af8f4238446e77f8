"""The process in which the tests of a program run, started by `sandbox`: it alone says whether they passed.

The tests are trusted source. The functions of the program that they call are stand-ins here: each sends its arguments
to the program's process (`sandbox_program`) and returns its answer, as plain data. A problem's own helper functions run
here too.
"""

from __future__ import annotations

import builtins
import json
import os
import symtable
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

from specdec.lab.eval.sandbox_jail import close_memory, limit
from specdec.lab.eval.sandbox_values import MessageError, Writer, read_item, read_objects, receive, send

_MOST_WORD = 200


class _GoneError(BaseException):
    """The program does not answer any more."""


def main(limits: str, channel: str, results: str) -> None:
    """Run the tests of standard input, and write on `results`, a file descriptor, how they ended.

    Args:
        limits: as JSON.
        channel: file descriptor of the socket to the program.
        results: file descriptor for one word: "passed", "memory", "gone", or "failed" with an error's last line.
    """
    sources = json.load(sys.stdin)
    close_memory()
    limit(json.loads(limits))
    program = _Program(int(channel))
    try:
        _check(program, **sources)
        word = "passed"
    except MemoryError:
        word = "memory"
    except BaseException as error:
        word = f"failed {traceback.format_exception_only(error)[-1].strip()[:_MOST_WORD]}"
    # Tests may catch whatever a call raises: these count nevertheless.
    if program.is_gone:
        word = "gone"
    elif program.fault:
        word = f"failed the program's answer cannot be read: {program.fault}"[:_MOST_WORD]
    os.write(int(results), word.encode(errors="replace"))
    os._exit(0)


def _check(program: _Program, functions: list[str], helpers: str, tests: str) -> None:
    program.begin()
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(helpers, "helpers.py", "exec"), names)
    for name in [*functions, *_unknown_names(tests, {*names, *vars(builtins)})]:
        names[name] = program.function(name)
    exec(compile(tests, "tests.py", "exec"), names)


def _unknown_names(source: str, known: set[str]) -> list[str]:
    """Global names that a module uses without making them: the program's."""
    top = symtable.symtable(source, "tests.py", "exec")
    made = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    used = {
        one.get_name()
        for table in _tables(top)
        for one in table.get_symbols()
        if one.is_referenced() and (one.is_global() or table is top)
    }
    return sorted(used - made - known)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for inner in table.get_children():
        yield from _tables(inner)


class _Program:
    """The program, at the other end of a socket. What it sends is only ever read as plain data.

    Attributes:
        is_gone: it has ended, or closed its end.
        fault: what was wrong with what it sent, if anything was.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self.is_gone = False
        self.fault = ""

    def begin(self) -> None:
        """Wait until the program's functions are there.

        Raises:
            Exception: what the program raised.
        """
        self._receive([])

    def function(self, name: str) -> Callable[..., Any]:
        """A stand-in for one of its functions."""

        def call(*arguments: Any, **named: Any) -> Any:
            words = Writer()
            message = {
                "name": name,
                "arguments": [words.item(one) for one in arguments],
                "named": {key: words.item(one) for key, one in named.items()},
                "objects": words.entries,
            }
            try:
                send(self._channel, message)
            except OSError:
                self._lose()
            return self._receive(words.objects)

        call.__name__ = call.__qualname__ = name
        return call

    def _receive(self, known: list[Any]) -> Any:
        if self.is_gone or self.fault:
            raise _GoneError
        try:
            if (answer := receive(self._channel)) is None:
                self._lose()
            objects = known if answer.get("objects") is None else read_objects(known, answer["objects"])
            if "error" not in answer:
                return read_item(answer["value"], objects)
            error = _to_error(answer["error"], [read_item(one, objects) for one in answer["arguments"]])
        except (MessageError, LookupError, TypeError) as wrong:
            self.fault = str(wrong) or "it is malformed"
            raise _GoneError from None
        raise error

    def _lose(self) -> NoReturn:
        self.is_gone = True
        raise _GoneError


def _to_error(names: list[str], arguments: list[Any]) -> BaseException:
    """An exception of the first built-in type among the names of an exception's types, under the name of the first.

    Raises:
        MessageError: they are not names of exceptions.
    """
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise MessageError("an exception is malformed")
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            if name != names[0] and names[0].isidentifier():
                kind = type(names[0], (kind,), {"__module__": "builtins"})
            with suppress(Exception):  # some take other arguments than this one has
                error: BaseException = kind(*arguments)
                return error
    raise MessageError("an exception is malformed")
