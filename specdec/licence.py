"""Licences that have to be accepted before a model of the catalogue is fetched, and a record of accepted ones.

Who is asked, and how, is the caller's business: `specdec.cli.consent` asks on a terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from specdec import paths
from specdec.errors import LicenceError, StoreError
from specdec.interrupts import unless_signalled
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.whole_file import whole_file


@dataclass(frozen=True, slots=True)
class Terms:
    """A licence that asks for consent.

    Attributes:
        licence: its name.
        url: where its text is.
    """

    licence: str
    url: str


Consent: TypeAlias = Callable[[str, Terms], bool]
"""Whether the user accepts the terms of a model, which is named first."""


def accepted(_model: str, _terms: Terms) -> bool:
    """A `Consent` that accepts every licence."""
    return True


def refused(_model: str, _terms: Terms) -> bool:
    """A `Consent` that has not been given: refuses."""
    return False


def require(model: str, terms: Terms, consent: Consent) -> None:
    """Go on only with consent, which is remembered: the same terms are not asked for again.

    Args:
        model: catalogue name of what is to be fetched.
        terms: that it is under.
        consent: asked unless the terms were accepted before.

    Raises:
        LicenceError: the terms are not accepted.
        StoreError: the consent cannot be written down.
    """
    if is_accepted(terms):
        return
    if not consent(model, terms):
        raise LicenceError(model, terms.licence, terms.url)
    path = _record(terms)
    noted = {**asdict(terms), "model": model, "accepted_at": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        paths.private_folder(path.parent)
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    except unless_signalled(OSError) as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from None


def is_accepted(terms: Terms) -> bool:
    """Whether these very terms were accepted before, for any model."""
    try:
        noted = parse_json(read_regular(_record(terms), most_bytes=MOST_TEXT_BYTES))
    except unless_signalled(OSError, ValueError):
        return False
    return isinstance(noted, dict) and noted.get("url") == terms.url and noted.get("licence") == terms.licence


def _record(terms: Terms) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", terms.licence.lower()).strip("-")
    return paths.home() / "licences" / f"{name}.json"
