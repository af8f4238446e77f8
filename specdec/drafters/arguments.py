"""Reads the argument after the colon of a drafter: `key=value` parts, whole numbers, files of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from specdec import read_file
from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled

if TYPE_CHECKING:
    from specdec.tokenizers import Tokenizer


def read_options(drafter: str, argument: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """The values of `key=value,key=value`, over the defaults.

    Raises:
        InvalidArgumentError: a part is no `key=value`, or its key is unknown or given twice.
    """
    given: dict[str, str] = {}
    for part in argument.split(",") if argument else ():
        key, equals, value = part.partition("=")
        if not equals or not value or key not in defaults:
            raise InvalidArgumentError(
                f"drafter {drafter!r} takes {', '.join(f'{name}=...' for name in defaults)}, not {part!r}"
            )
        if key in given:
            raise InvalidArgumentError(f"drafter {drafter!r} was given {key}= twice: keep one")
        given[key] = value
    return {**defaults, **given}


def whole_number(drafter: str, name: str, text: str, *, low: int, high: int) -> int:
    """A whole number from `low` to `high`.

    Raises:
        InvalidArgumentError: the text is none.
    """
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else low - 1
    if not low <= value <= high:
        raise InvalidArgumentError(
            f"drafter {drafter!r} needs a whole number from {low} to {high} as {name}, not {text!r}"
        )
    return value


def read_text(drafter: str, path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        InvalidArgumentError: it is missing, unreadable, no UTF-8, or empty.
    """
    try:
        text = read_file.read_text(path)
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(f"drafter {drafter!r} cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"drafter {drafter!r} needs UTF-8 text, which {path} is not") from None
    if not text.strip():
        raise InvalidArgumentError(f"drafter {drafter!r} needs some text, and {path} is empty")
    return text


def encode(drafter: str, path: Path, text: str, tokenizer: Tokenizer | None) -> list[int]:
    """Token ids of the text that `path` holds.

    Raises:
        InvalidArgumentError: the model has no tokenizer.
    """
    if tokenizer is None:
        raise InvalidArgumentError(f"drafter {drafter!r} cannot read {path} as text: this model has no tokenizer")
    from specdec.tokenizers.long_text import encode_long

    return encode_long(tokenizer, text)
