"""`specdec list`: the entries of the cache folder, their sizes and origins."""

from __future__ import annotations

import argparse
from typing import Any

from specdec import catalogue, paths
from specdec.cache import Entry
from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples, on_one_line, readable_bytes
from specdec.cli.output import add_json_option, check_json, write_json_output


def add_parser(subparsers: Subparsers) -> None:
    """Add `list` to the command line."""
    parser = subparsers.add_parser(
        "list",
        help=COMMANDS["list"],
        description="List what the cache folder holds: size, kind, name, origin and place of each entry.",
        **examples("specdec list", "specdec list --json models.json"),
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each entry, and the sum."""
    check_json(arguments)
    entries = catalogue.cached()
    if arguments.json is not None:
        write_json_output(arguments, to_dict(entries))
    if arguments.json != "-":
        for one in entries:
            words = f"{one.name}  ({_origin(one)})  {one.path}"
            print(f"{readable_bytes(one.size_bytes):>8}  {one.kind:<12}  {on_one_line(words)}")
        print(f"{readable_bytes(sum(one.size_bytes for one in entries)):>8}  in all, in {paths.home()}")
    return 0


def to_dict(entries: list[Entry]) -> dict[str, Any]:
    """The list as plain JSON values."""
    return {
        "path": str(paths.home()),
        "size_bytes": sum(one.size_bytes for one in entries),
        "entries": [one.to_dict() for one in entries],
    }


def _origin(entry: Entry) -> str:
    if entry.kind == "measurements":
        return "measured here"
    if entry.source is None:
        return "of unknown origin"
    return f"from {entry.source}" + (", which is gone or has changed" if entry.orphan else "")
