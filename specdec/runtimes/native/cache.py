"""Cache of the native runtime: a handle to keys and values that live in C++ (`kernels/cpu/model/cache.h`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.runtimes.checks import check_fork, check_keep, check_trim

_MOST_TOKENS = 2**40  # that C++ is asked for: no machine holds as many


class NativeCache:
    """Keys and values of one sequence, float16, in the layout of the native kernels: blocks of 128 positions, which
    forks share until either of them writes there."""

    __slots__ = ("capacity", "handle")

    def __init__(self, handle: Any, capacity: int) -> None:
        self.handle = handle
        self.capacity = capacity  # most tokens that may be held

    @property
    def length(self) -> int:
        """Tokens held."""
        return int(self.handle.length)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks held; those shared with forks count in each."""
        return int(self.handle.nbytes)

    def blocks(self) -> dict[int, int]:
        """Bytes of each block held, by its number; see `Cache.blocks`."""
        size = int(self.handle.block_bytes)
        return dict.fromkeys(self.handle.block_ids, size)

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens, and memory for one block more.

        Raises:
            InvalidArgumentError: `length` is negative or larger than the current one.
        """
        held = self.length
        check_trim(length, held)
        if length != held:
            self.handle.trim(length)

    def keep(self, base: int, rows: Sequence[int]) -> None:
        """Keep the first `base` tokens and, of those after them, `rows`: one path of a tree; see `Cache.keep`.

        Raises:
            InvalidArgumentError: `base` or a row is out of range, or the rows do not ascend.
        """
        check_keep(self.length, base, rows)
        with_memory(self.handle.keep, base, [int(row) for row in rows])

    def fork(self, length: int, capacity: int) -> NativeCache:
        """A cache of at most `capacity` tokens that begins with this one's first `length`; see `Cache.fork`.

        Raises:
            InvalidArgumentError: `length` is out of range or above `capacity`.
        """
        check_fork(self.length, length, capacity)
        return NativeCache(with_memory(self.handle.fork, length, min(capacity, _MOST_TOKENS)), capacity)


def new_native_cache(model: Any, capacity: int) -> NativeCache:
    """An empty cache of a `_native.Model`."""
    return NativeCache(model.new_cache(min(capacity, _MOST_TOKENS)), capacity)


def with_memory(call: Any, *arguments: Any) -> Any:
    """What `call` returns.

    Raises:
        InvalidArgumentError: there is no memory for it.
    """
    try:
        return call(*arguments)
    except MemoryError:
        raise InvalidArgumentError("there is no memory for a longer cache: ask for fewer tokens") from None
