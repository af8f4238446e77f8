"""`--json` of every command: one object on one line on standard output, or into a file."""

from __future__ import annotations

import argparse
import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

from specdec.cli.common import check_writable
from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.whole_file import write_output

STANDARD_OUTPUT = "-"
# Options and arguments of all commands that name files, by what is done with these.
_WRITTEN = ("json", "csv", "out", "trace")
_READ = (
    "data", "draft_schedule", "grammar_file", "grid", "index", "json_schema", "layer", "model", "policy", "prompt_file",
    "prompts", "queries", "source", "text", "vectors", "verify_schedule",
)  # fmt: skip


def add_json_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--json [FILE]`. `main` sees to it that only FILE directly after `--json`, in a way that cannot be another
    argument, is taken for its value."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=STANDARD_OUTPUT,
        metavar="FILE",
        help="write one JSON object to FILE, or to standard output instead of text",
    )


def check_json(arguments: argparse.Namespace) -> None:
    """Refuse a file that could not be written later.

    Raises:
        InvalidArgumentError: it cannot be written, or its name is empty.
    """
    if arguments.json == "":
        raise InvalidArgumentError("--json needs the name of a file, or no value to write to standard output")
    if arguments.json not in (None, STANDARD_OUTPUT):
        check_writable("--json", arguments.json)


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse files of `--json` and `--out` that could not be written later, or that are one file.

    Raises:
        InvalidArgumentError: one cannot be written, or both are the same.
    """
    check_json(arguments)
    if arguments.out is None:
        return
    check_writable("--out", arguments.out)
    check_different(arguments, "out")


def check_different(arguments: argparse.Namespace, *names: str) -> None:
    """Refuse one file for two of `--json` and other options.

    Raises:
        InvalidArgumentError: two name the same file.
    """
    given = {name: getattr(arguments, name) for name in ("json", *names)}
    files = {name: Path(path).resolve() for name, path in given.items() if path not in (None, STANDARD_OUTPUT)}
    for (one, path), (other, same) in combinations(files.items(), 2):
        if path == same:
            raise InvalidArgumentError(f"--{one} and --{other} need different files")


def check_apart(arguments: argparse.Namespace) -> None:
    """Refuse an output that would replace a file that the same command reads.

    Raises:
        InvalidArgumentError: there is such an output.
    """
    read = {os.path.realpath(path) for name in _READ for path in _texts(getattr(arguments, name, None))}
    for name in _WRITTEN:
        for path in _texts(getattr(arguments, name, None)):
            if os.path.realpath(path) in read and Path(os.path.realpath(path)).is_file():
                raise InvalidArgumentError(
                    f"--{name} {path} would replace a file that this command reads: name another"
                )


def _texts(value: object) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one]


def write_json_output(arguments: argparse.Namespace, value: Any) -> None:
    """Write `value` where `--json` said, as one object on one line; nothing without `--json`.

    Raises:
        InvalidArgumentError: the file cannot be written.
        OSError: standard output cannot be written.
    """
    if arguments.json is None:
        return
    text = json.dumps(value) + "\n"
    if arguments.json == STANDARD_OUTPUT:
        print(text, end="")
        return
    try:
        write_output(Path(arguments.json), text.encode())
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(f"cannot write --json {arguments.json}: {error.strerror or error}") from None
