"""The prompt of `specdec generate`: an argument, a file, or standard input."""

from __future__ import annotations

import argparse
import codecs
import sys

from specdec.errors import InvalidArgumentError
from specdec.read_file import read_bounded, read_bytes

_WAYS = "--prompt TEXT or --prompt-file FILE, or a prompt on standard input"


def add_prompt_options(group: argparse._ArgumentGroup) -> None:
    """Add --prompt, --prompt-file and --system."""
    given = group.add_mutually_exclusive_group()
    given.add_argument(
        "--prompt", metavar="TEXT", help="the prompt (without --prompt and --prompt-file, a pipe is read)"
    )
    given.add_argument("--prompt-file", metavar="FILE", help="a UTF-8 file with the prompt; - reads standard input")
    group.add_argument("--system", metavar="TEXT", help="a system message before the prompt")


def prompt_text(arguments: argparse.Namespace) -> str:
    """The prompt's text.

    Raises:
        InvalidArgumentError: no prompt, or one that is empty, cannot be read or is not UTF-8.
    """
    if arguments.prompt is not None:
        data = _of_shell(arguments.prompt)
    elif arguments.prompt_file not in (None, "-"):
        data = _of_file(arguments.prompt_file)
    else:
        data = _piped(asked=arguments.prompt_file == "-")
    text = _decoded(data, "the prompt")
    if not text:
        raise InvalidArgumentError("the prompt is empty: give at least one character")
    return text


def system_text(arguments: argparse.Namespace) -> str | None:
    """The text of --system; None without it.

    Raises:
        InvalidArgumentError: it is not UTF-8.
    """
    return None if arguments.system is None else _decoded(_of_shell(arguments.system), "--system")


def _of_shell(argument: str) -> bytes:
    """The bytes that the shell handed over."""
    return argument.encode("utf-8", "surrogateescape")


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{what} is not valid UTF-8 (byte {error.start})") from None


def _of_file(path: str) -> bytes:
    try:
        return _without_end(read_bytes(path))
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the prompt {path}: {error.strerror}") from None


def _piped(*, asked: bool) -> bytes:
    """All of standard input; a terminal is read only where that was asked for.

    Raises:
        InvalidArgumentError: there is none, or it cannot be read.
    """
    if sys.stdin is None:
        raise InvalidArgumentError(
            "--prompt-file - reads standard input, which is closed" if asked else f"generate needs {_WAYS}"
        )
    if not asked and sys.stdin.isatty():
        raise InvalidArgumentError(f"generate needs {_WAYS}")
    try:
        return _without_end(read_bounded(sys.stdin.buffer))
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the prompt from standard input: {error.strerror or error}") from None


def _without_end(data: bytes) -> bytes:
    """What a text file says: without the byte order mark that some editors put first, and the end of its last line."""
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
