"""The text that distributions are compared on: the caller's file, or the prompts that come along."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from specdec.errors import InvalidArgumentError
from specdec.read_file import read_bytes


def read_text(path: str | Path | None) -> str:
    """The text of a file, or else the prompts of Spec-Bench one after another: news, encyclopedia, German, questions
    and sums (Xia et al. 2401.07851; the half that comes along).

    Raises:
        InvalidArgumentError: the file cannot be read, or is no UTF-8.
    """
    if path is None:
        raw = resources.files("specdec").joinpath("data", "spec_bench_dev.jsonl").read_text(encoding="utf-8")
        return "\n\n".join(json.loads(line)["turns"][0] for line in raw.splitlines())
    try:
        return read_bytes(path).decode("utf-8")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"the text {path} is not UTF-8") from None
