"""The tokens that text is mostly made of, of any vocabulary: `frequent_tokens`.

Vocabularies made by merging pairs number their tokens in the order of the merges, the most frequent first, in the text
that they were made of. For some that is text in a hundred languages. `specdec/data/frequent_pieces.txt` holds the order
of a vocabulary of English text and code; `benchmarks/rank_pieces.py` made it. A piece of text counts by both orders.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import lru_cache
from importlib.resources import files

_FILE = "frequent_pieces.txt"
_SMOOTHING = 60  # ranks that make little difference, in both orders


def frequent_tokens(
    pieces: Sequence[bytes], vocab_size: int, count: int, *, always: Collection[int] = ()
) -> tuple[int, ...]:
    """The ids of the most frequent tokens, ascending.

    Two orders are joined by the sums of their reciprocal ranks (Cormack, Clarke, Buettcher, SIGIR 2009).

    Args:
        pieces: bytes of every id, as `Tokenizer.pieces`; none for a model without a tokenizer, of which the lowest ids
            are taken.
        vocab_size: of the model, which may have fewer or more ids than the tokenizer.
        count: how many, at least 1; all where there are no more.
        always: ids to be among them, such as those that end an answer.
    """
    if count >= vocab_size:
        return tuple(range(vocab_size))
    ranks, worth = _ranks(), dict[int, float]()
    own = 0
    for token in range(min(vocab_size, len(pieces)) or vocab_size):
        piece = pieces[token] if pieces else b""
        if pieces and not piece:
            continue
        listed = ranks.get(piece)
        worth[token] = 1 / (_SMOOTHING + own) + (0.0 if listed is None else 1 / (_SMOOTHING + listed))
        own += 1
    for token in always:
        if token < vocab_size:
            worth[token] = 1.0
    best = sorted(worth, key=lambda token: -worth[token])[:count]
    return tuple(sorted(best))


@lru_cache(maxsize=1)
def _ranks() -> dict[bytes, int]:
    """The rank of every piece that is listed."""
    text = (files("specdec") / "data" / _FILE).read_text(encoding="utf-8")
    lines = (line for line in text.split("\n") if line and not line.startswith("#"))
    return {json.loads(line).encode("utf-8"): rank for rank, line in enumerate(lines)}
