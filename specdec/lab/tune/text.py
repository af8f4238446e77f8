"""The text that tuning measures on: the caller's file or the packaged one, as passages of tokens."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.errors import InvalidArgumentError

if TYPE_CHECKING:
    from specdec.tokenizers import Tokenizer


def read_text(path: str | Path | None) -> str:
    """The text of a file, or the packaged calibration text: prose, code, sums, lists and a dialogue, written for this
    purpose and under the licence of this package.

    Raises:
        InvalidArgumentError: the file cannot be read, or is no UTF-8.
    """
    if path is None:
        return resources.files("specdec.configs").joinpath("calibration.txt").read_text(encoding="utf-8")
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the calibration text {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"the calibration text {path} is not UTF-8") from None


def split_passages(text: str, tokenizer: Tokenizer, *, count: int, length: int) -> list[list[int]]:
    """`count` passages of `length` tokens, spread evenly over the text; they overlap when it is short.

    Raises:
        InvalidArgumentError: the text is shorter than one passage.
    """
    tokens = tokenizer.encode(text, add_bos=False)
    if len(tokens) < length:
        raise InvalidArgumentError(f"the text has {len(tokens)} tokens and needs at least {length}: give a longer one")
    first = [] if tokenizer.bos_id is None or not tokenizer.add_bos else [tokenizer.bos_id]
    step = (len(tokens) - length) / max(1, count - 1)
    starts = [round(number * step) for number in range(count)]
    return [(first + tokens[start : start + length])[:length] for start in starts]
