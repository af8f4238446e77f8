"""Where several GPUs divide a model: arrays of a step on their way through the devices, inside its graph."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

from specdec.errors import InvalidArgumentError
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.share import Share

_TILE = 16  # outputs


class ArrayExchange(Protocol):
    """Connects devices whose rows are MLX arrays; see `specdec.runtimes.share.Exchange`."""

    def collect_array(self, own: Any) -> Any:
        """The arrays of all devices, (ranks, *own.shape), from this one's."""
        ...


class SharedArrays:
    """Puts rows together.

    Args:
        mx: MLX.
        share: what this device holds.

    Raises:
        InvalidArgumentError: a device would hold nothing of some matrix, or norms of queries span all heads.
    """

    def __init__(self, mx: Any, share: Share) -> None:
        self._mx, self._share = mx, share
        exchange: Any = share.exchange
        self._exchange: ArrayExchange = exchange
        if share.ranks > 1 and any(layer.attention.qk_norm == "full" for layer in share.config.layers):
            raise InvalidArgumentError(
                "the mlx runtime cannot divide models whose norms of queries span all heads: use runtime 'native'"
            )
        if share.is_uneven or not share.is_cut_in(_TILE):
            raise InvalidArgumentError(
                f"the mlx runtime cannot divide this model among {share.ranks} devices: one would hold no head, or "
                f"parts of a tile of {_TILE} outputs"
            )

    def values(self, matrix: str, own: Any) -> Any:
        """What enters a multiplication, (rows, parts, padded width), of as many values as `matrix` has outputs.

        Args:
            matrix: whose division it has.
            own: (rows, parts, this device's padded width).
        """
        whole = self._join(matrix, own)
        wide = padded(whole.shape[-1])
        if wide == whole.shape[-1]:
            return whole
        filler = self._mx.zeros((*whole.shape[:-1], wide - whole.shape[-1]), whole.dtype)
        return self._mx.concatenate([whole, filler], axis=-1)

    def columns(self, matrix: str, own: Any) -> Any:
        """(…, all outputs of `matrix`) from this device's."""
        return self._join(matrix, own)

    def _join(self, matrix: str, own: Any) -> Any:
        bounds = self._share.bounds(matrix)
        widths = [high - low for low, high in pairwise(bounds)]
        if len(widths) == 1:
            return own if own.shape[-1] == widths[0] else own[..., : widths[0]]
        if set(widths) == {own.shape[-1]}:  # as few operations as can be: each costs as much as a small kernel
            found = self._exchange.collect_array(own)
            if own.size != own.shape[-1]:
                found = self._mx.moveaxis(found, 0, -2)
            return found.reshape(*own.shape[:-1], bounds[-1])
        widest, held = max(widths), own.shape[-1]
        if held < widest:
            own = self._mx.concatenate([own, self._mx.zeros((*own.shape[:-1], widest - held), own.dtype)], axis=-1)
        found = self._exchange.collect_array(self._mx.contiguous(own[..., :widest]))
        return self._mx.concatenate([found[rank][..., :width] for rank, width in enumerate(widths)], axis=-1)
