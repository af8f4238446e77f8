"""`specdec rm`: remove models, and what was measured, from the cache folder."""

from __future__ import annotations

import argparse

from specdec import cache, catalogue
from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples, on_one_line, readable_bytes
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.errors import InvalidArgumentError


def add_parser(subparsers: Subparsers) -> None:
    """Add `rm` to the command line."""
    parser = subparsers.add_parser(
        "rm",
        help=COMMANDS["rm"],
        description="Remove models from the cache folder. Nothing outside it is touched: a model file that you named "
        "by its path stays, and is converted again on its next use.",
        **examples("specdec rm qwen2.5-coder-0.5b", "specdec rm --orphans"),
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="a name that `specdec list` shows, a catalogue name, or the path of a model",
    )
    parser.add_argument(
        "--orphans", action="store_true", help="stores whose model is gone or has changed, and unfinished work"
    )
    parser.add_argument("--all", action="store_true", help="everything")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Remove, and say what was removed."""
    if not (arguments.names or arguments.orphans or arguments.all) and arguments.json not in (None, "-"):
        arguments.names, arguments.json = [arguments.json], "-"  # `rm --json NAME`
    check_json(arguments)
    if sum((bool(arguments.names), arguments.orphans, arguments.all)) != 1:
        raise InvalidArgumentError("rm needs names, --orphans or --all: one of the three")
    entries = catalogue.cached()
    if arguments.names:
        chosen = [one for name in arguments.names for one in cache.find_entries(entries, name)]
    else:
        chosen = [one for one in entries if arguments.all or one.orphan or one.kind == "unfinished"]
    chosen = list(dict.fromkeys(chosen))
    for one in chosen:
        cache.remove(one)
    size = sum(one.size_bytes for one in chosen)
    if arguments.json is not None:
        write_json_output(arguments, {"removed": [one.to_dict() for one in chosen], "size_bytes": size})
    if arguments.json != "-":
        for one in chosen:
            print(f"removed {on_one_line(one.name)} ({readable_bytes(one.size_bytes)})")
        print(f"{readable_bytes(size)} freed")
    return 0
