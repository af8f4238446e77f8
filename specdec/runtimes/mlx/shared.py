"""Where several GPUs divide a model: arrays of a step on their way through the devices, inside its graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from specdec.errors import InvalidArgumentError
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.peer import PeerGather, PeerMemory, open_peers
from specdec.runtimes.mlx.state import MAX_ROWS
from specdec.runtimes.share import Share

if TYPE_CHECKING:
    from specdec.runtimes.mlx.device import CudaDriver

_TILE = 16  # outputs
PATIENCE_S = 120.0  # of a gather; a rank that has died is noticed sooner


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
        driver: of this device, for gathers through the memory of the others; None leaves all to the exchange.

    Attributes:
        way: transport of rows between devices, for display: "peer memory" or the reason why not.

    Raises:
        InvalidArgumentError: a device would hold nothing of some matrix, or norms of queries span all heads.
    """

    def __init__(self, mx: Any, share: Share, driver: CudaDriver | None = None) -> None:
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
        self._gather: PeerGather | None = None
        self._driver = driver
        self.way = self._opened(driver)

    def _opened(self, driver: CudaDriver | None) -> str:
        """Open the memory of the other devices where that is possible; returns the transport of rows."""
        share, exchange = self._share, self._share.exchange
        backend = getattr(exchange, "backend", "")
        if driver is None or share.ranks == 1 or not getattr(exchange, "reaches_memory", False):
            return backend
        if any(layer.mlp.shared_width for layer in share.config.layers):
            return f"{backend}: gathers of shared experts may run at the same time"
        widest = max(high - low for name in share.shapes() for low, high in pairwise(share.bounds(name)))
        peers = open_peers(driver, exchange, PeerGather.bytes_for(MAX_ROWS * widest, share.ranks))
        if isinstance(peers, str):
            return f"{backend}: {peers}"
        self._gather = PeerGather(self._mx, peers, patience_s=PATIENCE_S)
        return "peer memory"

    def memory(self, nbytes: int) -> PeerMemory | None:
        """Memory of all devices that each of them may write into; None where they cannot. To be called on all."""
        if self._driver is None or (self._share.ranks > 1 and self._gather is None):
            return None
        if self._share.ranks == 1:
            return PeerMemory(0, [self._driver.shared_memory(nbytes)], nbytes)
        peers = open_peers(self._driver, self._share.exchange, nbytes)
        return None if isinstance(peers, str) else peers

    def values(self, matrix: str, own: Any) -> Any:
        """What enters a multiplication, (rows, parts, padded width), of as many values as `matrix` has outputs.

        Args:
            matrix: whose division it has.
            own: (rows, parts, this device's padded width).
        """
        bounds = self._share.bounds(matrix)
        wide = padded(bounds[-1])
        if self._gather is not None and self._gather.fits(own, bounds):
            return self._gather(own, bounds, wide)
        whole = self.joined(bounds, own)
        if wide == whole.shape[-1]:
            return whole
        filler = self._mx.zeros((*whole.shape[:-1], wide - whole.shape[-1]), whole.dtype)
        return self._mx.concatenate([whole, filler], axis=-1)

    def columns(self, matrix: str, own: Any) -> Any:
        """(…, all outputs of `matrix`) from this device's."""
        return self.joined(self._share.bounds(matrix), own)

    def joined(self, bounds: Sequence[int], own: Any) -> Any:
        """(…, bounds[-1]) from every device's columns, of which `bounds` says where they begin."""
        widths = [high - low for low, high in pairwise(bounds)]
        if len(widths) == 1:
            return own if own.shape[-1] == widths[0] else own[..., : widths[0]]
        if self._gather is not None and self._gather.fits(own, bounds):
            return self._gather(own, bounds, bounds[-1])
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
