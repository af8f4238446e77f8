"""The process in which a program of a model runs, started by `sandbox`: it answers calls of the program's functions.

Nothing here can be trusted once the program has begun, because it shares this interpreter. So this process holds no
tests, no expected values and nothing to write a result on: `sandbox_checker` calls it over one socket.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from specdec.lab.eval.sandbox_jail import confine, give_up_capabilities, give_up_root, limit
from specdec.lab.eval.sandbox_values import Writer, read_item, read_objects, receive, send

# What programs commonly import. Read before rights are given up: the interpreter may lie where only its owner reads.
_COMMON = (
    "abc bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools "
    "json math operator random re statistics string sys textwrap time typing"
)


def main(limits: str, channel: str, status: str, folder: str) -> None:
    """Confine and limit this process, run the program of standard input, and answer calls until the other end closes.

    Args:
        limits: as JSON.
        channel: file descriptor of the socket.
        status: file descriptor on which to say that the limits hold.
        folder: of the jail; empty for none.
    """
    source = sys.stdin.buffer.read()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    _preload()
    if folder:
        confine(folder)
    give_up_root()
    limit(json.loads(limits))
    if folder:
        give_up_capabilities()
    os.write(int(status), b"limited")
    os.close(int(status))
    sys.argv = ["program.py"]
    _serve(source, int(channel))
    os._exit(0)  # no exit handlers of the program


def _preload() -> None:
    for name in _COMMON.split():
        __import__(name)
    "".encode("ascii").decode("latin-1").encode("utf-16")


def _serve(source: bytes, channel: int) -> None:
    program = sys.modules["__main__"] = types.ModuleType("__main__")

    def run() -> None:
        exec(compile(source, "program.py", "exec"), program.__dict__)

    _send(channel, _answer(run, ()))
    while (message := receive(channel)) is not None:
        known = read_objects((), message["objects"])
        arguments = [read_item(item, known) for item in message["arguments"]]
        named = {name: read_item(item, known) for name, item in message["named"].items()}
        call = partial(_call, program, message["name"], arguments, named)
        _send(channel, _answer(call, known))


def _call(program: types.ModuleType, name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
    if name not in program.__dict__:
        raise NameError(f"name {name!r} is not defined")
    return program.__dict__[name](*arguments, **named)


def _answer(call: Callable[[], Any], known: Sequence[Any]) -> dict[str, Any]:
    """What a call returns or raises, with what its arguments hold now."""
    try:
        value = call()
        answer = Writer(known)
        return {"value": answer.item(value), "objects": answer.entries}
    except BaseException as error:
        return _raised(error, known)


def _raised(error: BaseException, known: Sequence[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"error": [kind.__name__ for kind in type(error).__mro__], "objects": None}
    try:
        answer = Writer(known)
        arguments = [answer.item(one) for one in error.args]
    except (TypeError, RecursionError):  # something is not plain data
        return message | {"arguments": [str(error)]}
    return message | {"arguments": arguments, "objects": answer.entries}


def _send(channel: int, answer: dict[str, Any]) -> None:
    try:
        send(channel, answer)
    except TypeError as error:
        send(channel, _raised(error, ()))
