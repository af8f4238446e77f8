"""Matrices as MLX arrays, and bucketMul with them: one activation row times the weights that a selection keeps.

The selection itself is `selection.select_tiers`. A weight matrix is held as (in, out) float32: on a CPU that is the
fastest layout for one row, and the order of every output's sum is then the order of the inputs. Wide matrices are cut
into blocks of outputs at places that follow from the shape, so that temporary arrays stay small; an output's sum never
crosses a cut.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from specdec.kernels.reference.mlx_backend import mx

# 2 MiB of float32: temporary arrays of this size are reused by the C library's allocator, while those of tens of MiB go
# back to the system on every free, and then page faults cost more than the arithmetic.
_BLOCK_WEIGHTS = 1 << 19


def block_starts(inputs: int, outputs: int) -> list[int]:
    """First output of every block of a matrix, from its shape alone."""
    return list(range(0, outputs, max(64, _BLOCK_WEIGHTS // inputs // 64 * 64)))


class Multiplier(Protocol):
    """Weights that can multiply one row."""

    def dense(self, row: Any) -> Any:
        """row (1, in) times every weight: (1, out) float32."""
        ...

    def selected(self, row: Any, prefix: NDArray[np.uint8]) -> Any:
        """row (1, in) times the first prefix[i] tiers of every input i: (1, out) float32. May sum in an order that
        follows the selection, which is itself a function of the row."""
        ...


class FloatMatrix:
    """Float32 weights with, where some effort below 1 needs it, the tier of every weight."""

    def __init__(self, weights: NDArray[np.float32]) -> None:
        """Take weights of shape (out, in); they are copied."""
        self.outputs, self.inputs = weights.shape
        self._starts = block_starts(self.inputs, self.outputs)
        self._blocks = [mx.array(np.ascontiguousarray(part.T)) for part in np.split(weights, self._starts[1:])]
        self._tiers: list[Any] | None = None
        mx.eval(self._blocks)

    @property
    def has_tiers(self) -> bool:
        """Whether `set_tiers` was called."""
        return self._tiers is not None

    def set_tiers(self, tiers: NDArray[np.uint8]) -> None:
        """Take the tier of every weight, uint8 (in, at least out), padding last; copied."""
        parts = np.split(tiers[:, : self.outputs], self._starts[1:], axis=1)
        self._tiers = [mx.array(np.ascontiguousarray(part)) for part in parts]
        mx.eval(self._tiers)

    def column(self, output: int) -> Any:
        """Row `output` of the (out, in) matrix, which is a token's embedding when this is a tied head: (1, in)."""
        width = self._blocks[0].shape[1]
        return mx.contiguous(self._blocks[output // width][:, output % width]).reshape(1, -1)

    def columns(self, outputs: NDArray[np.int32]) -> Any:
        """The weights of some outputs: (in, n)."""
        width = self._blocks[0].shape[1]
        order = np.argsort(outputs // width, kind="stable")
        taken = []
        for number, block in enumerate(self._blocks):
            own = outputs[order][outputs[order] // width == number] % width
            if len(own):
                taken.append(mx.take(block, mx.array(own), axis=1))
        place = np.empty(len(outputs), np.int32)
        place[order] = np.arange(len(outputs), dtype=np.int32)
        found = mx.contiguous(mx.take(mx.concatenate(taken, axis=1), mx.array(place), axis=1))
        mx.eval(found)
        return found

    def dense(self, row: Any) -> Any:
        """row (1, in) times every weight: (1, out)."""
        return _joined([row @ block for block in self._blocks])

    def masked(self, row: Any, prefix: NDArray[np.uint8], *, whole: bool = False) -> Any:
        """bucketMul in the order of `dense`: products outside the selection are zeros that change no sum.

        Without tiers an input is taken whole or not at all.

        Args:
            row: (1, in) float32.
            prefix: (in,) uint8, tiers to take of every input.
            whole: an input is taken whole in any case.

        Returns:
            (1, out) float32; equals `dense` bit for bit when the selection is everything.
        """
        if whole or self._tiers is None:
            return self.dense(row * mx.array((prefix > 0).astype(np.float32)))
        taken = mx.array(prefix[:, None])
        return _joined(
            [row @ (block * _as_float(tiers < taken)) for block, tiers in zip(self._blocks, self._tiers, strict=True)]
        )

    def selected(self, row: Any, prefix: NDArray[np.uint8], *, whole: bool = False) -> Any:
        """bucketMul over the inputs that have any tier taken, gathered first; see `masked`."""
        inputs = np.flatnonzero(prefix)
        index, part = mx.array(inputs), _gathered_row(row, inputs)
        if whole or self._tiers is None:
            return _joined([part @ block[index] for block in self._blocks])
        taken = mx.array(prefix[inputs][:, None])
        return _joined(
            [
                part @ (block[index] * _as_float(tiers[index] < taken))
                for block, tiers in zip(self._blocks, self._tiers, strict=True)
            ]
        )


class GroupScaledMatrix:
    """Small whole numbers with a scale per group of inputs, multiplied out when used: a quarter of float32's memory."""

    def __init__(self, levels: NDArray[np.int8], scale: NDArray[np.floating], group: int) -> None:
        """Take levels (in, out) and scales (ceil(in / group), out); weight = levels[i, o] * scale[i // group, o]."""
        self.inputs, self.outputs = levels.shape
        starts = block_starts(self.inputs, self.outputs)[1:]
        self._levels = [mx.array(np.ascontiguousarray(part)) for part in np.split(levels, starts, axis=1)]
        scale = scale.astype(np.float32)
        self._scales = [mx.array(np.ascontiguousarray(part)) for part in np.split(scale, starts, axis=1)]
        self._group = group
        mx.eval(self._levels, self._scales)

    def dense(self, row: Any) -> Any:
        """row (1, in) times every weight: (1, out)."""
        return self.selected(row, np.ones(self.inputs, np.uint8))

    def selected(self, row: Any, prefix: NDArray[np.uint8]) -> Any:
        """row times the inputs with prefix 1, gathered and multiplied out."""
        inputs = np.flatnonzero(prefix)
        index, groups, part = mx.array(inputs), mx.array(inputs // self._group), _gathered_row(row, inputs)
        return _joined(
            [
                part @ (levels[index].astype(mx.float32) * scales[groups])
                for levels, scales in zip(self._levels, self._scales, strict=True)
            ]
        )


def _gathered_row(row: Any, inputs: NDArray[np.intp]) -> Any:
    return mx.take(row, mx.array(inputs), axis=1)


def _as_float(mask: Any) -> Any:
    """A bool array as float32. MLX converts bytes several times faster than bools on a CPU."""
    return mask.view(mx.uint8).astype(mx.float32)


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
