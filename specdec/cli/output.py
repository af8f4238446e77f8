"""`--json` of every command: one object on one line on standard output, or into a file."""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

from specdec.cli.common import check_writable
from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.whole_file import write_output

STANDARD_OUTPUT = "-"


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
