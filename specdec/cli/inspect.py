"""`specdec inspect`: what a store holds, checked byte for byte. Measuring it is `store.inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path

from specdec import catalogue
from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.errors import StoreError
from specdec.hub_name import parse_hub_name


def add_parser(subparsers: Subparsers) -> None:
    """Add `inspect` to the command line."""
    parser = subparsers.add_parser(
        "inspect",
        help=COMMANDS["inspect"],
        description="Describe a store: shapes, tiers, bytes, checksums, energy per tier. Every byte is verified.",
        **examples("specdec inspect store", "specdec inspect smollm2-135m --json store.json"),
    )
    parser.add_argument("store", metavar="STORE", help="folder of a store, or the name of a model that was pulled")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Describe the store on standard output."""
    from specdec.store.inspect import inspect_store

    check_json(arguments)
    report = inspect_store(_folder(arguments.store))
    write_json_output(arguments, report.to_dict())
    if arguments.json != "-":
        print(report.to_text())
    return 0


def _folder(named: str) -> Path:
    """The folder of a store that is there already; nothing is fetched or converted for a look.

    Raises:
        StoreError: the name has not been pulled.
    """
    if named not in catalogue.list_names() and (Path(named).exists() or parse_hub_name(named) is None):
        return Path(named)
    if not catalogue.is_pulled(named):
        raise StoreError(f"{named} has not been pulled: run `specdec pull {named}`")
    return catalogue.store_path(named)
