"""Gathers between the GPUs of one host through each other's memory: `PeerMemory`, `PeerGather`.

A process allocates memory by the driver, sends its handle over the existing connection between ranks, and opens the
others' memory. Kernels then write into it over NVLink or PCIe. A call of NCCL inside a graph costs ten times as much as
copying the few kilobytes of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from specdec.interrupts import unless_signalled
from specdec.runtimes.mlx.device import HANDLE_BYTES, CudaDriver
from specdec.runtimes.mlx.kernels import Constant, build, kernel_text
from specdec.runtimes.share import Exchange

AT_RECORDS = 4096  # bytes before the records of gathers
_THREADS = 256
_MOST_BLOCKS = 32
_RECORD_WORDS = 2  # in 16 bytes


class PeerMemory:
    """Memory of this GPU that the others write into, and the same memory of the others.

    Attributes:
        rank: rank of this process.
        addresses: address of every rank's memory, as this process sees it.
        nbytes: size of each.
    """

    def __init__(self, rank: int, addresses: Sequence[int], nbytes: int) -> None:
        self.rank, self.addresses, self.nbytes = rank, tuple(addresses), nbytes

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return len(self.addresses)


def open_peers(driver: CudaDriver, exchange: Exchange, nbytes: int) -> PeerMemory | str:
    """Memory of all ranks, or the reason why there is none; the same on all ranks. To be called on all of them.

    Args:
        driver: driver of this process's GPU.
        exchange: connects the ranks.
        nbytes: size of each rank's memory, zeros at first.
    """
    problem, own, handle = "", 0, bytes(HANDLE_BYTES)
    try:
        own = driver.shared_memory(nbytes)
        handle = driver.handle_of(own)
    except unless_signalled(OSError) as error:
        problem = str(error)
    handles = exchange.collect(np.frombuffer(handle, np.uint8).astype(np.float32)).astype(np.uint8)
    addresses = [own] * exchange.ranks
    for rank in range(exchange.ranks):
        if rank == exchange.rank or problem or not handles[rank].any():
            continue
        try:
            addresses[rank] = driver.open_handle(handles[rank].tobytes())
        except unless_signalled(OSError) as error:
            problem = str(error)
    failed = exchange.collect(np.array([bool(problem)], np.float32))
    if failed.any():
        first = int(np.flatnonzero(failed[:, 0])[0])
        return problem or f"rank {first} could not open the memory of the others"
    return PeerMemory(exchange.rank, addresses, nbytes)


class PeerGather:
    """Puts rows of all ranks together inside a graph; every rank runs the same gathers, one after the other.

    Args:
        mx: MLX.
        memory: memory of all ranks.
        patience_s: seconds after which a waiting gather ends the process.
    """

    def __init__(self, mx: Any, memory: PeerMemory, *, patience_s: float) -> None:
        self._mx, self._memory, self._patience_ns = mx, memory, int(patience_s * 1e9)
        self._slot_bytes = (memory.nbytes - AT_RECORDS) // (2 * memory.ranks) // 16 * 16
        table = mx.array(np.array(memory.addresses, np.int64))
        self._table = table + mx.zeros_like(table)
        mx.eval(self._table)
        self._built: dict[tuple[Any, ...], Any] = {}

    @staticmethod
    def bytes_for(values: int, ranks: int) -> int:
        """Bytes of each rank's memory for gathers of 32-bit `values` of a rank at most."""
        return AT_RECORDS + 2 * ranks * 16 * -(-values // _RECORD_WORDS)

    def fits(self, own: Any, bounds: Sequence[int]) -> bool:
        """Whether a gather has whole words and fits the memory."""
        each = own.dtype.size
        lines = own.size // own.shape[-1]
        widest = max(high - low for low, high in pairwise(bounds))
        words = -(-widest * each // 4)
        whole = all(bound * each % 4 == 0 for bound in (*bounds, own.shape[-1]))
        return whole and 16 * lines * -(-words // _RECORD_WORDS) <= self._slot_bytes

    def __call__(self, own: Any, bounds: Sequence[int], wide: int) -> Any:
        """Whole rows (…, wide), zeros after the last column.

        Args:
            own: this rank's columns, (…, at least its width); see `fits`.
            bounds: first column of every rank, and the number of columns.
            wide: columns of the result.
        """
        each, lines = own.dtype.size, own.size // own.shape[-1]
        words = [bound * each // 4 for bound in bounds]
        constants: dict[str, Constant] = {"LINES": lines, "HELD": own.shape[-1] * each // 4, "WIDE": wide * each // 4}
        constants |= {"BOUNDS": ", ".join(map(str, words)), "RANKS": self._memory.ranks, "RANK": self._memory.rank}
        records = lines * max(-(-(high - low) // _RECORD_WORDS) for low, high in pairwise(words))
        blocks = max(1, min(_MOST_BLOCKS, -(-records // _THREADS)))
        constants |= {"BLOCKS": blocks, "THREADS": _THREADS, "SLOT_BYTES": self._slot_bytes, "AT_RECORDS": AT_RECORDS}
        constants["PATIENCE_NS"] = f"{self._patience_ns}ull"
        key = (own.dtype, *constants.items())
        if key not in self._built:
            text = kernel_text(
                "cuda", "gather", constants, inputs=("own", "table"), outputs=("found",), bounds=(_THREADS, 1),
                parts=("peer.cuh",),
            )  # fmt: skip
            self._built[key] = build(self._mx, "cuda", text)
        made: Any = self._built[key](
            inputs=[own, self._table],
            grid=(blocks * _THREADS, 1, 1),
            threadgroup=(_THREADS, 1, 1),
            output_shapes=[(*own.shape[:-1], wide)],
            output_dtypes=[own.dtype],
        )
        return made[0]
