"""Asking for consent to a licence: on a terminal, or by an option."""

from __future__ import annotations

import argparse
import sys

from specdec import licence
from specdec.licence import Consent, Terms


def add_licence_option(parser: argparse.ArgumentParser) -> None:
    """Add --accept-licence, also as --accept-license."""
    parser.add_argument(
        "--accept-licence",
        "--accept-license",
        dest="accept_licence",
        action="store_true",
        help="accept the licence of a model that requires it, such as gemma-3-270m (else a terminal asks)",
    )


def consent_of(arguments: argparse.Namespace) -> Consent:
    """What the user has said of licences: yes by the option; otherwise a terminal asks."""
    if getattr(arguments, "accept_licence", False):
        return licence.accepted
    return _ask


def _ask(model: str, terms: Terms) -> bool:
    """Ask at the terminal; without one the answer is no."""
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
        return False
    print(f"{model} is under the {terms.licence}: {terms.url}", file=sys.stderr)
    print("Do you accept them? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _is_terminal(stream: object) -> bool:
    return stream is not None and bool(getattr(stream, "isatty", lambda: False)())
