"""The part of a model that one of several devices holds, where the outputs of every matrix are divided among them.

A device multiplies whole rows by its outputs, in the order of sums that one device has, and the outputs of all are put
together before they are multiplied again: no sum crosses a device, so the bits are those of one. Which devices there
are, and how arrays get from one to another, is `specdec.distributed`.

The rule of division: outputs are cut into units, and each device holds as many consecutive units as the others or one
more, the first devices those with one more. A unit of the residual stream, of an MLP's inner width and of the
vocabulary is 128 outputs, or one bucket where that would leave a device with fewer than two units; a unit of attention
is a key-value head with its query heads, or as many of them as fill whole buckets. A device may hold nothing of a small
matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from specdec.model.architecture import ModelConfig
from specdec.store.share import StoreShare

if TYPE_CHECKING:
    from specdec.store import Store

_UNIT = 128  # outputs that kernels keep together


class Exchange(Protocol):
    """Connects the devices. Every call is made on all of them, in the same order, with arrays of one shape.

    Attributes:
        rank: number of this device, from 0.
        ranks: number of devices.
    """

    rank: int
    ranks: int

    def collect(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """The arrays of all devices, float32 (ranks, *own.shape), from this one's."""
        ...


def bounds_of(total: int, unit: int, ranks: int) -> tuple[int, ...]:
    """First output of every device, and the number of outputs at the end: (ranks + 1,).

    Args:
        total: outputs.
        unit: outputs that stay together.
        ranks: devices.
    """
    units = -(-total // unit)
    least, more = divmod(units, ranks)
    return tuple(min(total, unit * (least * rank + min(rank, more))) for rank in range(ranks + 1))


class Part(Protocol):
    """What one of several devices holds: outputs of all matrices (`Share`), or layers
    (`specdec.distributed.stages.Stage`).

    Attributes:
        whole: the model.
        config: the same, or this device's layers of it as a model of their own.
        rank: number of this device.
        ranks: number of devices.
        vectors: this device's part of each vector.
        is_staged: it holds layers.
        embeds: rows begin here, as embeddings.
        scores: logits are made here.
    """

    whole: ModelConfig
    config: ModelConfig
    rank: int
    ranks: int
    vectors: dict[str, slice]
    is_staged: bool
    embeds: bool
    scores: bool

    @property
    def is_uneven(self) -> bool:
        """Whether some device holds nothing of some matrix."""
        ...

    @property
    def tokens(self) -> slice:
        """Tokens of the logits layer."""
        ...

    @property
    def embedded(self) -> slice:
        """Tokens of the embedding."""
        ...

    @property
    def hidden(self) -> slice:
        """Outputs of the matrices that return to the residual stream."""
        ...

    def part_of(self, store: Store) -> Store:
        """This device's part of a store."""
        ...

    def is_cut_in(self, size: int) -> bool:
        """Whether every device's outputs of every matrix begin at a multiple of `size`."""
        ...

    def outputs(self, matrix: str) -> slice:
        """Outputs of a matrix."""
        ...

    def shapes(self) -> dict[str, tuple[int, int]]:
        """This device's part of every matrix."""
        ...

    def heads(self, layer: int) -> slice:
        """Query heads of a layer."""
        ...

    def kv_heads(self, layer: int) -> slice:
        """Key-value heads of a layer."""
        ...

    def gather(
        self, matrix: str | int, own: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of all outputs of a matrix."""
        ...

    def gather_embeddings(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        own: NDArray[np.float32],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Rows that enter the first layer here."""
        ...

    def leave(self, rows: NDArray[np.float32]) -> None:
        """Hand on rows behind the last layer here."""
        ...

    def put_together(
        self, matrix: int, own: NDArray[np.float32], out: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> None:
        """What the native kernels call."""
        ...


class Share:
    """What device `exchange.rank` holds of a model.

    Args:
        config: the model.
        bucket_size: of the store.
        exchange: connects the devices.
    """

    is_staged, embeds, scores = False, True, True

    def __init__(self, config: ModelConfig, bucket_size: int, exchange: Exchange) -> None:
        self.whole, self.config, self.exchange = config, config, exchange
        self.rank, self.ranks = exchange.rank, exchange.ranks
        self._bucket = bucket_size
        self._shapes = config.matrices()
        self._bounds = {name: self._cut(name) for name in self._shapes}
        self._numbers = list(self._bounds.values())
        self.vectors = {name: self._vector(name, size) for name, size in config.vectors().items()}

    def part_of(self, store: Store) -> Store:
        """This device's part of a store."""
        return StoreShare(store, self)

    @property
    def is_uneven(self) -> bool:
        """Whether some device holds nothing of some matrix."""
        return any(low == high for bounds in self._numbers for low, high in pairwise(bounds))

    def is_cut_in(self, size: int) -> bool:
        """Whether every device's outputs of every matrix begin at a multiple of `size`."""
        return all(bound % size == 0 or bound == bounds[-1] for bounds in self._numbers for bound in bounds)

    def bounds(self, matrix: str | int) -> tuple[int, ...]:
        """First output of every device, and the number of outputs, of a matrix by its name or number."""
        return self._numbers[matrix] if isinstance(matrix, int) else self._bounds[matrix]

    def outputs(self, matrix: str) -> slice:
        """This device's outputs of a matrix."""
        return slice(*self._bounds[matrix][self.rank : self.rank + 2])

    def shapes(self) -> dict[str, tuple[int, int]]:
        """This device's share of every matrix, (out, in) by name; `out` may be 0."""
        return {name: (_length(self.outputs(name)), inputs) for name, (_, inputs) in self._shapes.items()}

    @property
    def tokens(self) -> slice:
        """This device's tokens of the logits layer and of the embedding."""
        return self.outputs("head")

    @property
    def embedded(self) -> slice:
        """This device's tokens of the embedding."""
        return self.tokens

    @property
    def hidden(self) -> slice:
        """This device's outputs of the matrices that return to the residual stream."""
        return self.outputs("layers.0.attn.o")

    def kv_heads(self, layer: int) -> slice:
        """This device's key-value heads of a layer."""
        return self._heads(layer, "k")

    def heads(self, layer: int) -> slice:
        """This device's query heads of a layer."""
        return self._heads(layer, "q")

    def gather(
        self, matrix: str | int, own: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of all outputs of a matrix.

        Args:
            matrix: name or number.
            own: float32 (rows, outputs here).
            out: where they go, float32 (rows, outputs); None makes an array.
        """
        bounds = self.bounds(matrix)
        rows, widths = len(own), np.diff(bounds)
        widest = int(widths.max())
        if own.shape[1] < widest:
            padded = np.zeros((rows, widest), np.float32)
            padded[:, : own.shape[1]] = own
            own = padded
        found = self.exchange.collect(np.ascontiguousarray(own))
        if out is None:
            out = np.empty((rows, bounds[-1]), np.float32)
        for part, low, high in zip(found, bounds, bounds[1:], strict=False):
            out[:, low:high] = part[:, : high - low]
        return out

    def gather_embeddings(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        own: NDArray[np.float32],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings of tokens, each from the device that holds it.

        Args:
            tokens: ids of the rows.
            own: float32 (rows, hidden); only rows of this device's tokens count.
            out: where they go; None makes an array.
        """
        found = self.exchange.collect(np.ascontiguousarray(own))
        owners = np.searchsorted(np.array(self._bounds["head"][1:]), np.asarray(tokens), side="right")
        chosen = found[owners, np.arange(len(own))]
        if out is None:
            return chosen
        out[:] = chosen
        return out

    def leave(self, rows: NDArray[np.float32]) -> None:
        """Rows behind the last layer: they are on all devices."""

    def put_together(
        self, matrix: int, own: NDArray[np.float32], out: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> None:
        """`gather`, or for matrix -1 `gather_embeddings`: what the native kernels call."""
        if matrix < 0:
            self.gather_embeddings(tokens, own, out)
        else:
            self.gather(matrix, own, out)

    def _heads(self, layer: int, name: str) -> slice:
        size, outputs = self.config.layers[layer].attention.head_dim, self.outputs(f"layers.{layer}.attn.{name}")
        return slice(outputs.start // size, outputs.stop // size)

    def _cut(self, name: str) -> tuple[int, ...]:
        total = self._shapes[name][0]
        parts = name.split(".")
        if parts[-2:-1] == ["attn"] and parts[-1] != "o":
            attention = self.config.layers[int(parts[1])].attention
            heads = self._bucket // math.gcd(self._bucket, attention.head_dim)
            return bounds_of(total, heads * attention.head_dim * total // attention.kv_width, self.ranks)
        unit = math.lcm(_UNIT, self._bucket)
        return bounds_of(total, unit if total >= 2 * unit * self.ranks else self._bucket, self.ranks)

    def _vector(self, name: str, size: int) -> slice:
        """This device's part of a vector: biases and sinks divide as their matrices do, all else is whole."""
        matrix = name.removesuffix(".bias")
        if name.endswith(".sinks"):
            return self.heads(int(name.split(".")[1]))
        return self.outputs(matrix) if matrix != name and matrix in self._bounds else slice(0, size)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
