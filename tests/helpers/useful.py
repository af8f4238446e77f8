"""Options drawn at random, without those that would have no effect beside the others and are therefore refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specdec.engine.option_checks import check_useful
from specdec.errors import OptionError


def useful(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of `options`."""
    left = dict(options)
    while True:
        try:
            check_useful(left)
        except OptionError as error:
            del left[error.option]
        else:
            return left
