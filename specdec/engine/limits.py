"""Limits of answers that share passes: what `Batch` and `Scheduler` take, checked without a model."""

from __future__ import annotations

from specdec.checks import is_integral
from specdec.errors import OptionError
from specdec.runtimes.base import MAX_PASS_ROWS, MAX_SEQUENCES


def check_limits(
    *,
    max_sequences: int = MAX_SEQUENCES,
    max_rows: int = MAX_PASS_ROWS,
    cache_bytes: int | None = None,
    queue: int | None = None,
) -> None:
    """Refuse limits that are out of range; see `Batch`.

    Raises:
        OptionError: one is.
    """
    for name, value, most in (("max_sequences", max_sequences, MAX_SEQUENCES), ("max_rows", max_rows, MAX_PASS_ROWS)):
        if not is_integral(value) or not 1 <= value <= most:
            raise OptionError(name, f"must be a whole number from 1 to {most}, not {value!r}")
    for name, given, least, unit in (("cache_bytes", cache_bytes, 1, "bytes"), ("queue", queue, 0, "requests")):
        if given is not None and (not is_integral(given) or given < least):
            raise OptionError(name, f"must be a whole number of {unit} of at least {least}, not {given!r}")
