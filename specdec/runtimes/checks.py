"""Checks that every runtime makes of its arguments: batches, trees, tokens, and operations of caches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specdec.checks import is_integral
from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import MAX_PASS_ROWS, MAX_SEQUENCES, MAX_TREE_ROWS, Cache, Rows

_FEW_TOKENS = 32


def check_batch(
    batch: Sequence[Rows], config: ModelConfig, kind: type, *, chooses: bool = False, narrows: bool = False
) -> None:
    """Refuse a batch that no runtime runs.

    Args:
        batch: what `Runtime.forward` was given.
        config: the model.
        kind: class of the runtime's caches.
        chooses: the runtime returns choices.
        narrows: the runtime lets rows attend to a window of the context.

    Raises:
        InvalidArgumentError: see `Runtime.forward`.
    """
    count = len(batch)
    if not 1 <= count <= MAX_SEQUENCES:
        raise InvalidArgumentError(f"a pass takes 1 to {MAX_SEQUENCES} sequences, not {count}")
    for rows in batch:
        if not isinstance(rows.cache, kind):
            raise InvalidArgumentError("a cache must come from new_cache of this runtime")
        if rows.layers is not None:
            checked_layers(rows.layers, config)
        if rows.logits not in ("all", "last", "none", "choices"):
            raise InvalidArgumentError(f"logits must be 'all', 'last', 'none' or 'choices', not {rows.logits!r}")
        if rows.logits == "choices" and not chooses:
            raise InvalidArgumentError("this runtime makes no choices: ask for logits")
        if rows.ahead and (rows.logits != "choices" or len(rows.tokens) != 1 or rows.ahead < 0):
            raise InvalidArgumentError("a pass goes ahead by its own choices from a single row, by at least 0 tokens")
        if rows.further and (not rows.ahead or rows.further < 0):
            raise InvalidArgumentError("further tokens follow those that a pass goes ahead for, at least 0 of them")
        if rows.recycling is not None and (rows.logits != "choices" or len(rows.tokens) != 1):
            raise InvalidArgumentError("a pass drafts by itself from a single row, and by its own choices")
        if rows.window is not None and not narrows:
            raise InvalidArgumentError("this runtime attends to all of the context: ask for no window")
        if rows.parents is not None:
            check_parents(rows.parents, len(rows.tokens))
    if count > 1:
        total = sum(len(rows.tokens) for rows in batch)
        if total > MAX_PASS_ROWS:
            raise InvalidArgumentError(f"a pass of several sequences takes {MAX_PASS_ROWS} rows, not {total}")
        if len({id(rows.cache) for rows in batch}) < count:
            raise InvalidArgumentError("a cache may occur once in a pass")


def check_parents(parents: Sequence[int], count: int) -> None:
    """Refuse parents that are not a tree over `count` rows.

    Raises:
        InvalidArgumentError: too many rows, another number of parents, or a parent that is not an earlier row or -1.
    """
    if len(parents) != count or count > MAX_TREE_ROWS:
        raise InvalidArgumentError(
            f"a tree has one parent a row and at most {MAX_TREE_ROWS} rows, not {len(parents)} for {count} rows"
        )
    for row, parent in enumerate(parents):
        if not is_integral(parent) or not -1 <= parent < row:
            raise InvalidArgumentError(f"row {row} of a tree must follow an earlier row or -1, not {parent!r}")


def check_keep(length: int, base: int, rows: Sequence[int]) -> None:
    """Refuse what `Cache.keep` cannot do.

    Raises:
        InvalidArgumentError: see `Cache.keep`.
    """
    if not is_integral(base) or not 0 <= base <= length:
        raise InvalidArgumentError(f"a cache of {length} tokens has no base of {base!r}")
    last = -1
    for row in rows:
        if not is_integral(row) or not last < row < length - base:
            raise InvalidArgumentError(f"rows to keep must ascend from 0 to {length - base - 1}, not {list(rows)}")
        last = row


def check_capacity(capacity: int) -> None:
    """Refuse a capacity that is not a positive whole number.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not is_integral(capacity) or capacity < 1:
        raise InvalidArgumentError(f"cache capacity must be a positive whole number of tokens, not {capacity!r}")


def check_trim(length: int, held: int) -> None:
    """Refuse a length that a cache of `held` tokens cannot be trimmed to.

    Raises:
        InvalidArgumentError: it is not a whole number from 0 to `held`.
    """
    if not is_integral(length) or not 0 <= length <= held:
        raise InvalidArgumentError(f"a cache of {held} tokens cannot be trimmed to {length!r}")


def check_fork(held: int, length: int, capacity: int) -> None:
    """Refuse a fork that cannot be.

    Raises:
        InvalidArgumentError: `length` is not from 0 to `held`, or above `capacity`.
    """
    check_capacity(capacity)
    if not is_integral(length) or not 0 <= length <= min(held, capacity):
        raise InvalidArgumentError(f"a fork of a cache of {held} tokens for {capacity} cannot hold {length!r}")


def checked_layers(layers: int | None, config: ModelConfig) -> int:
    """The number of layers to run.

    Raises:
        InvalidArgumentError: it is not a whole number from 1 to what the model has.
    """
    if layers is None:
        return config.num_layers
    if not is_integral(layers) or not 1 <= layers <= config.num_layers:
        raise InvalidArgumentError(f"layers must be a whole number from 1 to {config.num_layers}, not {layers!r}")
    return layers


def head_tokens(tokens: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    """The tokens of a draft head, (n,).

    Raises:
        InvalidArgumentError: one is outside the vocabulary.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise InvalidArgumentError(f"token id {token} is outside the vocabulary of {vocab_size}")
    return np.array(tokens, np.int32)


def _within(ids: NDArray[np.int64], vocab_size: int) -> bool:
    """Whether all ids are in the vocabulary.

    The few tokens of a round go through a list: between passes, which drive code out of the processor's caches, numpy's
    reductions take longer.
    """
    if len(ids) > _FEW_TOKENS:
        return bool(ids.min() >= 0 and ids.max() < vocab_size)
    few: list[int] = ids.tolist()
    return min(few) >= 0 and max(few) < vocab_size


def checked_tokens(tokens: Sequence[int], cache: Cache, vocab_size: int) -> NDArray[np.int64]:
    """The token ids of a pass over `cache`, (M,).

    Raises:
        InvalidArgumentError: there is none, one is outside the vocabulary, or the cache has no room for all.
    """
    try:
        ids = np.asarray(tokens, dtype=np.int64)
    except OverflowError:  # an id so large is outside any vocabulary
        ids = None
    if ids is not None and (ids.ndim != 1 or not len(ids)):
        raise InvalidArgumentError("a pass needs at least one token")
    if ids is None or not _within(ids, vocab_size):
        wrong = next(int(token) for token in tokens if not 0 <= token < vocab_size)
        raise InvalidArgumentError(f"token id {wrong} is outside the vocabulary of {vocab_size}")
    if cache.length + len(ids) > cache.capacity:
        raise InvalidArgumentError(
            f"the cache holds {cache.length} of at most {cache.capacity} tokens: no room for {len(ids)} more"
        )
    return ids
