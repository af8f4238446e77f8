"""What usually follows a token, for any vocabulary: `usual_successors`.

Turns of a GPU runtime draft tokens that were likeliest after others lately (`specdec.runtimes.choices.Recycling`). A
new text has taught none yet, so it begins with those that often follow each other in prose and code.
`specdec/data/usual_pairs.txt` holds pieces of text, each with the pieces that followed it most often;
`benchmarks/usual_pairs.py` made it. Pieces that are no tokens of a vocabulary are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

MOST = 8  # successors of a token
_FILE = "usual_pairs.txt"


def usual_successors(pieces: Sequence[bytes], vocab_size: int) -> NDArray[np.int32]:
    """Successors of each token, int32 (vocab_size, `MOST`), likeliest first; -1 where there are no more.

    Args:
        pieces: bytes of every id, as `Tokenizer.pieces`; none for a model without a tokenizer, which has no successors.
        vocab_size: of the model, which may have fewer or more ids than the tokenizer.
    """
    found = np.full((vocab_size, MOST), -1, np.int32)
    if not pieces:
        return found
    pairs = _pairs()
    wanted = {piece for line in pairs for piece in line}
    tokens = {piece: token for token, piece in enumerate(pieces[:vocab_size]) if piece in wanted}
    for first, *others in pairs:
        known = [tokens[piece] for piece in others if piece in tokens][:MOST]
        if first in tokens:
            found[tokens[first], : len(known)] = known
    return found


@lru_cache(maxsize=1)
def _pairs() -> list[list[bytes]]:
    """Each piece that is listed, then those that follow it."""
    text = (files("specdec") / "data" / _FILE).read_text(encoding="utf-8")
    lines = (line for line in text.split("\n") if line and not line.startswith("#"))
    return [[piece.encode("utf-8") for piece in json.loads(line)] for line in lines]
