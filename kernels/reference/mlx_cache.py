"""Keys and values of one sequence as MLX arrays. Who fills them and who reads them is the runtime's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specdec.kernels.reference.mlx_backend import mx

from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import check_capacity, check_fork, check_keep, check_trim

_STEP = 256  # tokens by which the arrays grow: few copies for long texts, little memory for short ones


class KeyValueCache:
    """A float32 cache of at most `capacity` tokens. Entries past `length` are garbage that the next pass overwrites.

    Raises:
        InvalidArgumentError: `capacity` is not a positive whole number.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        check_capacity(capacity)
        self._capacity, self._length = capacity, 0
        self._shape = (config.num_kv_heads, 0, config.head_dim)
        self._keys: list[Any] = [mx.zeros(self._shape) for _ in range(config.num_layers)]
        self._values: list[Any] = [mx.zeros(self._shape) for _ in range(config.num_layers)]

    @property
    def length(self) -> int:
        """Tokens held, T."""
        return self._length

    @property
    def capacity(self) -> int:
        """Most tokens that fit."""
        return self._capacity

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens.

        Raises:
            InvalidArgumentError: `length` is negative or larger than the current one.
        """
        check_trim(length, self._length)
        self._length = length

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(int(array.nbytes) for array in (*self._keys, *self._values))

    def keep(self, base: int, rows: Sequence[int]) -> None:
        """Keep one path of a tree; see `Cache.keep`."""
        check_keep(self._length, base, rows)
        raise NotImplementedError

    def fork(self, length: int, capacity: int) -> KeyValueCache:
        """A cache that begins with this one's first `length` tokens; see `Cache.fork`."""
        check_fork(self._length, length, capacity)
        raise NotImplementedError

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Whether it was made for a model of this (layers, key-value heads, head size)."""
        return (len(self._keys), self._shape[0], self._shape[2]) == shape

    def write(self, layer: int, keys: Any, values: Any) -> None:
        """Put M new positions, (K, M, D) each, behind the `length` that are held; `advance` makes them count."""
        for held, new in ((self._keys, keys), (self._values, values)):
            end = self._length + new.shape[1]
            if held[layer].shape[1] < end:
                room = min(self._capacity, -(-end // _STEP) * _STEP)
                extra = mx.zeros((self._shape[0], room - held[layer].shape[1], self._shape[2]))
                held[layer] = mx.concatenate([held[layer], extra], axis=1)
            held[layer][:, self._length : end] = new

    def history(self, layer: int, start: int, stop: int) -> tuple[Any, Any]:
        """Keys and values of positions `start` to `stop`, (K, stop - start, D) each."""
        return self._keys[layer][:, start:stop], self._values[layer][:, start:stop]

    def arrays(self, layer: int) -> tuple[Any, Any]:
        """The arrays of one layer, for evaluation."""
        return self._keys[layer], self._values[layer]

    def advance(self, count: int) -> None:
        """Count the `count` positions that `write` has put into every layer."""
        self._length += count
