"""Texts that are measured on: the caller's file or a packaged one, and passages of their tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from specdec import read_file
from specdec.errors import InvalidArgumentError
from specdec.tokenizers.long_text import encode_long

if TYPE_CHECKING:
    from specdec.tokenizers import Tokenizer


def read_text(path: str | Path | None, packaged: Callable[[], str]) -> str:
    """The text of a file, or the packaged one for None.

    Raises:
        InvalidArgumentError: the file cannot be read, or is not UTF-8.
    """
    if path is None:
        return packaged()
    try:
        return read_file.read_text(path)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"the text {path} is not UTF-8") from None


def calibration() -> str:
    """Prose, code, sums, lists and a dialogue, written for `specdec tune` and under the licence of this package."""
    return resources.files("specdec.configs").joinpath("calibration.txt").read_text(encoding="utf-8")


def spec_bench() -> str:
    """The packaged prompts of Spec-Bench one after another (Xia et al. 2401.07851): news, encyclopedia, German,
    questions and sums."""
    raw = resources.files("specdec").joinpath("data", "spec_bench_dev.jsonl").read_text(encoding="utf-8")
    return "\n\n".join(json.loads(line)["turns"][0] for line in raw.splitlines())


def split_passages(text: str, tokenizer: Tokenizer, *, count: int, length: int) -> list[list[int]]:
    """`count` passages of `length` tokens, spread evenly over the text; they overlap when it is short.

    Raises:
        InvalidArgumentError: the text is shorter than one passage, or has fewer tokens than there are to be passages.
    """
    tokens = encode_long(tokenizer, text)
    if len(tokens) < length:
        raise InvalidArgumentError(f"the text has {len(tokens)} tokens and needs at least {length}: give a longer one")
    if count > len(tokens):
        raise InvalidArgumentError(
            f"passages must be at most {len(tokens)}, one for each token of the text, not {count}"
        )
    first = [] if tokenizer.bos_id is None or not tokenizer.add_bos else [tokenizer.bos_id]
    step = (len(tokens) - length) / max(1, count - 1)
    starts = [round(number * step) for number in range(count)]
    return [(first + tokens[start : start + length])[:length] for start in starts]
