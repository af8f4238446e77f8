"""Keys and values of one sequence as MLX arrays, which `specdec.kernels.reference.mlx_transformer` writes and reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specdec.kernels.reference.mlx_backend import mx
from specdec.model.architecture import ModelConfig
from specdec.runtimes.checks import check_capacity, check_fork, check_keep, check_trim

_STEP = 256  # tokens by which the arrays grow: few copies for long texts, little memory for short ones


class KeyValueCache:
    """A float32 cache of at most `capacity` tokens. Entries past `length` are garbage that the next pass overwrites.

    MLX's streams belong to threads, so every method leaves its arrays evaluated (`write` leaves that to its caller).

    Args:
        config: the model.
        capacity: most tokens.
        device: computes.
        kv_heads: of every layer that are on this device; None for all.

    Raises:
        InvalidArgumentError: `capacity` is not a positive whole number.
    """

    def __init__(self, config: ModelConfig, capacity: int, device: Any, kv_heads: Sequence[int] | None = None) -> None:
        check_capacity(capacity)
        self._capacity, self._length = capacity, 0
        self._config, self._device = config, device
        self._heads = [layer.attention.kv_heads for layer in config.layers] if kv_heads is None else kv_heads
        sizes = [layer.attention.head_dim for layer in config.layers]
        shapes = [(heads, 0, size) for heads, size in zip(self._heads, sizes, strict=True)]
        with mx.stream(device):
            self._keys: list[Any] = [mx.zeros(shape) for shape in shapes]
            self._values: list[Any] = [mx.zeros(shape) for shape in shapes]
            self.evaluate()

    @property
    def length(self) -> int:
        """Tokens held, T."""
        return self._length

    @property
    def capacity(self) -> int:
        """Most tokens that fit."""
        return self._capacity

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(int(array.nbytes) for array in (*self._keys, *self._values))

    def blocks(self) -> dict[int, int]:
        """Bytes held: nothing is shared with forks; see `Cache.blocks`."""
        return {id(self): self.nbytes}

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens; see `Cache.trim`."""
        check_trim(length, self._length)
        self._length = length

    def keep(self, base: int, rows: Sequence[int]) -> None:
        """Keep one path of a tree; see `Cache.keep`."""
        check_keep(self._length, base, rows)
        length = base + len(rows)
        if list(rows) != list(range(len(rows))):
            with mx.stream(self._device):
                slots = mx.array(base + np.asarray(rows))
                for held in (self._keys, self._values):
                    for layer, array in enumerate(held):
                        if array.shape[0] and array.shape[1] >= self._length:  # else the pass did not run this layer
                            held[layer][:, base:length] = mx.take(array, slots, axis=1)
                self.evaluate()
        self._length = length

    def fork(self, length: int, capacity: int) -> KeyValueCache:
        """A cache that begins with a copy of this one's first `length` tokens; see `Cache.fork`."""
        check_fork(self._length, length, capacity)
        other = KeyValueCache(self._config, capacity, self._device, self._heads)
        with mx.stream(self._device):
            other._keys = [mx.contiguous(array[:, :length]) for array in self._keys]
            other._values = [mx.contiguous(array[:, :length]) for array in self._values]
            other.evaluate()
        other._length = length
        return other

    def fits(self, config: ModelConfig) -> bool:
        """Whether it was made for a model of the same shape."""
        return config is self._config or config == self._config

    def write(self, layer: int, keys: Any, values: Any) -> None:
        """Put M new entries, (K, M, D) each, after the `length` that are held; `advance` makes them count."""
        for held, new in ((self._keys, keys), (self._values, values)):
            end, (heads, room, size) = self._length + new.shape[1], held[layer].shape
            if not heads:
                continue
            if room < end:
                wanted = min(self._capacity, -(-end // _STEP) * _STEP)
                held[layer] = mx.concatenate([held[layer], mx.zeros((heads, wanted - room, size))], axis=1)
            held[layer][:, self._length : end] = new

    def history(self, layer: int, slots: Sequence[int]) -> tuple[Any, Any]:
        """Keys and values of the entries `slots`, (K, len(slots), D) each, in that order."""
        keys, values = self._keys[layer], self._values[layer]
        if isinstance(slots, range):
            return keys[:, slots.start : slots.stop], values[:, slots.start : slots.stop]
        index = mx.array(np.asarray(slots))
        return mx.take(keys, index, axis=1), mx.take(values, index, axis=1)

    def arrays(self, layer: int) -> tuple[Any, Any]:
        """The arrays of one layer, for evaluation."""
        return self._keys[layer], self._values[layer]

    def advance(self, count: int) -> None:
        """Count the `count` entries that `write` has put into every layer."""
        self._length += count

    def evaluate(self) -> None:
        """Compute all arrays, so that any thread may use them."""
        mx.eval(self._keys, self._values)
