"""Tokens that usually follow others, by the model itself, for the turns that a runtime drafts: `provide_successors`.

The model is asked once what it would say after each of its frequent tokens, all after the same few words. That takes
about a second of a GPU, so the result is kept in the cache folder. It depends on the model alone: no text of anybody's
is in it. Source of the use: token recycling (Luo et al. 2408.08696), whose table begins empty.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specdec import paths
from specdec.conforms import conforms
from specdec.drafters.frequent import frequent_tokens
from specdec.errors import SpecdecError
from specdec.interrupts import unless_signalled
from specdec.kernels.reference.recycle import TOP
from specdec.read_file import read_regular
from specdec.runtimes.base import Surveyor
from specdec.whole_file import whole_file

if TYPE_CHECKING:
    from specdec.model.loaded import Model

_FORMAT = 1  # of the file: tokens, each with its `TOP` successors
_TOKENS = 8192  # surveyed: 0.99 of what twice as many bring, 4,096 bring 0.975
_MOST_BYTES = 1 << 26
# Text before the tokens. Answers to all kinds of prompts agree better with what follows in the midst of a sentence than
# with the beginning of an answer.
_QUESTION, _ANSWER = "Please answer the question.", "Sure. This is the answer, which has several parts. First,"


def provide_successors(model: Model, *, surveys: bool) -> None:
    """Tell the model's runtime what usually follows frequent tokens, where its turns draft with that and it does not
    know yet, and keep it in the memory of drafters.

    Args:
        model: whose runtime.
        surveys: ask the model if the cache folder does not know.
    """
    runtime = model.runtime
    if not conforms(runtime, Surveyor) or runtime.knows_successors:
        return
    file, vocabulary = _file(model), model.config.vocab_size
    table = None if file is None else _read(file, vocabulary)
    if table is None:
        if not surveys:
            return
        tokens = surveyed_tokens(model)
        table = np.column_stack([np.array(tokens, np.int32), runtime.survey(survey_prefix(model), tokens)])
        if file is not None:
            _write(file, table)
    runtime.use_successors(table[:, 0], table[:, 1:])
    model.memory.drafters.successors = dict(zip(table[:, 0].tolist(), table[:, 1:].tolist(), strict=True))


def surveyed_tokens(model: Model) -> tuple[int, ...]:
    """Ids of the model's most frequent tokens."""
    tokenizer, vocabulary = model.tokenizer, model.config.vocab_size
    if tokenizer is None:
        return frequent_tokens((), vocabulary, _TOKENS)
    return frequent_tokens(tokenizer.pieces, vocabulary, _TOKENS, always=tokenizer.eos_ids)


def survey_prefix(model: Model) -> list[int]:
    """The text before the tokens, in the model's chat format if it has one; at least two tokens."""
    tokenizer, config = model.tokenizer, model.config
    if tokenizer is None:
        return [0, 0]
    begin = ""
    with contextlib.suppress(SpecdecError):
        begin = tokenizer.apply_chat_template([{"role": "user", "content": _QUESTION}])
    known = [token for token in tokenizer.encode(begin + _ANSWER) if token < config.vocab_size]
    known = known[: config.max_context // 2]
    return known if len(known) > 1 else [0, 0]


def _file(model: Model) -> Path | None:
    """File of the table of this model's loaded part; None for a model without a store."""
    if model.store is None:
        return None
    store = model.store
    name = paths.name_of(_FORMAT, store.checksum, store.loaded_share, _TOKENS, _QUESTION, _ANSWER)
    return paths.home() / "successors" / f"{name}.bin"


def _read(file: Path, vocabulary: int) -> NDArray[np.int32] | None:
    """The table in a file; None where there is none, or it makes no sense."""
    try:
        table = np.frombuffer(read_regular(file, most_bytes=_MOST_BYTES), "<i4").reshape(-1, 1 + TOP)
    except unless_signalled(OSError, ValueError):
        return None
    return table if len(table) and table.min() >= 0 and table.max() < vocabulary else None


def _write(file: Path, table: NDArray[np.int32]) -> None:
    """Keep the table for the next process, whole or not at all."""
    with contextlib.suppress(OSError, SpecdecError):
        paths.private_folder(file.parent)
        with whole_file(file) as unfinished:
            unfinished.write_bytes(table.astype("<i4").tobytes())
