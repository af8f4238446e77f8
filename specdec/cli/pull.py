"""`specdec pull`: fetch a model of the catalogue and convert it."""

from __future__ import annotations

import argparse

from specdec import catalogue
from specdec.cli.common import Subparsers
from specdec.errors import InvalidArgumentError


def add_parser(subparsers: Subparsers) -> None:
    """Add `pull` to the command line."""
    parser = subparsers.add_parser("pull", help="fetch a model of the catalogue and convert it")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a name that --list shows")
    parser.add_argument("--list", action="store_true", help="list the catalogue and what is already here")
    parser.add_argument("--force", action="store_true", help="check and convert again what is already here")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the folder of the store, or the list."""
    if arguments.list:
        for entry in catalogue.entries().values():
            state = "here" if catalogue.is_pulled(entry.name) else f"{entry.size_bytes / 1e6:.0f} MB to fetch"
            print(f"{entry.name:<28} {entry.title}, {entry.licence}: {state}")
        return 0
    if arguments.name is None:
        raise InvalidArgumentError(f"pull needs the name of a model: one of {', '.join(catalogue.list_names())}")
    print(catalogue.pull(arguments.name, force=arguments.force))
    return 0
