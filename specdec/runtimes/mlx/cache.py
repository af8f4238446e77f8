"""Keys and values of one sequence on the GPU. Memory grows by doubling; the kernels write in place."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from threading import RLock
from typing import Any

from specdec.runtimes.checks import check_fork, check_keep, check_trim

SPAN = 256  # positions of the history in one split of attention, and the unit of a cache's memory


class GpuCache:
    """Keys and values of one sequence, float16.

    Arrays are (2, KV heads, positions, head size), one for each layer, or one of all layers (layers, 2, ...), as the
    model's steps take them. There are none before the first pass; growing copies them.

    Args:
        mx: MLX.
        shapes: of the arrays, with 0 positions.
        capacity: most tokens.
        lock: of the runtime: MLX does not allow work on several threads at a time.
    """

    __slots__ = ("_capacity", "_length", "_lock", "_mx", "_shapes", "address", "arrays")

    def __init__(self, mx: Any, shapes: Sequence[tuple[int, ...]], capacity: int, lock: RLock) -> None:
        self._mx, self._shapes, self._capacity, self._lock = mx, shapes, capacity, lock
        self._length = 0
        self.arrays: list[Any] = []
        self.address: int | None = None  # of the first array on the device, once asked for

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._length

    @property
    def capacity(self) -> int:
        """Most tokens that may be held."""
        return self._capacity

    @property
    def positions(self) -> int:
        """Positions that there is memory for."""
        return int(self.arrays[0].shape[-2]) if self.arrays else 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(int(array.nbytes) for array in self.arrays)

    def blocks(self) -> dict[int, int]:
        """Bytes held: nothing is shared with forks; see `Cache.blocks`."""
        return {id(self): self.nbytes}

    @property
    def most_bytes(self) -> int:
        """Bytes when it is full; while it grows, an array more for a moment."""
        spans = -(-self._capacity // SPAN)
        return sum(2 * prod((*shape[:-2], shape[-1])) * spans * SPAN for shape in self._shapes)

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens.

        Raises:
            InvalidArgumentError: `length` is negative or larger than the current one.
        """
        check_trim(length, self._length)
        self._length = length

    def keep(self, base: int, rows: Sequence[int]) -> None:
        """Keep one path of a tree: rows move to the slots from `base` on, on the device; see `Cache.keep`."""
        check_keep(self._length, base, rows)
        still = next((place for place, row in enumerate(rows) if row != place), len(rows))
        if still < len(rows):
            with self._lock:
                # By slices: MLX compiles the kernel of `take` when a process first calls it, seconds on CUDA.
                taken = [self._mx.concatenate(_slots(array, base, rows[still:]), axis=-2) for array in self.arrays]
                self._mx.eval(taken)
                for array, part in zip(self.arrays, taken, strict=True):
                    array[..., base + still : base + len(rows), :] = part
                self._mx.eval(self.arrays)
                self.address = None
        self._length = base + len(rows)

    def fork(self, length: int, capacity: int) -> GpuCache:
        """A cache that begins with a copy of this one's first `length` tokens; see `Cache.fork`."""
        check_fork(self._length, length, capacity)
        made = GpuCache(self._mx, self._shapes, capacity, self._lock)
        if length:
            with self._lock:
                made.arrays = made._grown(self.arrays, length, length)
        made._length = length
        return made

    def reserve(self, length: int) -> None:
        """Have memory for `length` tokens, at most the capacity. What lies past the tokens held stays, too."""
        if length > self.positions:
            with self._lock:
                self.arrays, self.address = self._grown(self.arrays, self.positions, length), None

    def advance(self, count: int) -> None:
        """Count `count` tokens more, which a pass has put there."""
        self._length += count

    def _grown(self, arrays: list[Any], held: int, length: int) -> list[Any]:
        """Arrays for `length` tokens that begin with the `held` ones of others: a power of two of spans."""
        spans = 1 << (-(-length // SPAN) - 1).bit_length()
        positions = min(spans, -(-self._capacity // SPAN)) * SPAN
        made = []
        for number, shape in enumerate(self._shapes):
            # Each must have memory of its own to be written in place: a constant may be shared.
            array = self._mx.zeros((*shape[:-2], positions, shape[-1]), dtype=self._mx.float16)
            array = array + self._mx.zeros((), dtype=array.dtype)
            if held:
                array[..., :held, :] = arrays[number][..., :held, :]
            self._mx.eval(array)  # one at a time: a step's memory grows by no more than this needs
            made.append(array)
        return made


def _slots(array: Any, base: int, rows: Sequence[int]) -> list[Any]:
    """Slots of an array, one by one."""
    return [array[..., base + row : base + row + 1, :] for row in rows]
