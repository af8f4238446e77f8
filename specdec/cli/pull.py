"""`specdec pull`: fetch a model of the catalogue and convert it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from specdec import catalogue
from specdec.cli.common import Subparsers
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.errors import InvalidArgumentError


def add_parser(subparsers: Subparsers) -> None:
    """Add `pull` to the command line."""
    parser = subparsers.add_parser("pull", help="fetch a model of the catalogue and convert it")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a name that --list shows")
    parser.add_argument("--list", action="store_true", help="list the catalogue and what is already here")
    parser.add_argument("--force", action="store_true", help="check and convert again what is already here")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the folder of the store, or the list."""
    if arguments.name is None and arguments.json not in (None, "-") and not arguments.list:
        arguments.name, arguments.json = arguments.json, "-"  # `pull --json NAME`
    check_json(arguments)
    if arguments.list:
        _list(arguments)
        return 0
    if arguments.name is None:
        raise InvalidArgumentError(f"pull needs the name of a model: one of {', '.join(catalogue.list_names())}")
    store = catalogue.pull(arguments.name, force=arguments.force)
    write_json_output(arguments, {"name": arguments.name, "store": str(store)})
    if arguments.json != "-":
        print(store)
    return 0


def _list(arguments: argparse.Namespace) -> None:
    entries = list(catalogue.entries().values())
    values = [asdict(entry) | {"here": catalogue.is_pulled(entry.name)} for entry in entries]
    write_json_output(arguments, {"models": values})
    if arguments.json != "-":
        for entry in entries:
            state = "here" if catalogue.is_pulled(entry.name) else f"{entry.size_bytes / 1e6:.0f} MB to fetch"
            print(f"{entry.name:<28} {entry.title}, {entry.licence}: {state}")
