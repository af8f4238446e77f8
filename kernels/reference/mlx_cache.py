"""Keys and values of one sequence as MLX arrays. Who fills them and who reads them is the runtime's business."""

from __future__ import annotations

from typing import Any

from specdec.kernels.reference.mlx_backend import mx

from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig

_STEP = 256  # tokens by which the arrays grow: few copies for long texts, little memory for short ones


class KeyValueCache:
    """A float32 cache of at most `capacity` tokens. Entries past `length` are garbage that the next pass overwrites.

    Raises:
        InvalidArgumentError: `capacity` is not a positive whole number.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise InvalidArgumentError(f"cache capacity must be a whole number of at least 1 token, not {capacity!r}")
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
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= self._length:
            raise InvalidArgumentError(f"a cache of {self._length} tokens can keep 0 to {self._length}, not {length!r}")
        self._length = length

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
