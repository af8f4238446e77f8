"""`specdec pull`: fetch a model of the catalogue or of a hub and convert it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from specdec import catalogue
from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples
from specdec.cli.consent import add_licence_option, consent_of
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.errors import InvalidArgumentError


def add_parser(subparsers: Subparsers) -> None:
    """Add `pull` to the command line."""
    parser = subparsers.add_parser(
        "pull",
        help=COMMANDS["pull"],
        description="Download a model of the catalogue or of the Hugging Face hub, and convert it. Only the files "
        "that are needed are downloaded; an interrupted download continues. A model of the hub stays at the "
        "revision that was downloaded; --force gets the newest.",
        **examples(
            "specdec pull --list",
            "specdec pull qwen2.5-coder-0.5b",
            "specdec pull Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
            "specdec pull gemma-3-270m --accept-licence",
        ),
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a name that --list shows, or ORG/NAME[@REVISION][:FILE] of the hub"
    )
    parser.add_argument("--list", action="store_true", help="list the catalogue, and which models are already here")
    parser.add_argument(
        "--force", action="store_true", help="check and convert again, even if the model is already here"
    )
    add_licence_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the folder of the store, or the list."""
    if arguments.name is None and arguments.json not in (None, "-") and not arguments.list:
        arguments.name, arguments.json = arguments.json, "-"  # `pull --json NAME`
    check_json(arguments)
    if arguments.list:
        if arguments.name is not None:
            raise InvalidArgumentError("--list lists all models and fetches none: leave out it or the name")
        _list(arguments)
        return 0
    if arguments.name is None:
        raise InvalidArgumentError(f"pull needs the name of a model: one of {', '.join(catalogue.list_names())}")
    store = catalogue.pull(arguments.name, force=arguments.force, consent=consent_of(arguments))
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
