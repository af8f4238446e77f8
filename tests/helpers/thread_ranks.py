"""Devices that are threads of one process: what they compute with shares of a model, without starting processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from specdec.runtimes.share import Share
from specdec.store import Store

_Result = TypeVar("_Result")
_PATIENCE_S = 300.0
_MLX = threading.Lock()


class ThreadExchange:
    """The end of one thread."""

    def __init__(self, rank: int, barrier: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.ranks = rank, barrier.parties
        self._barrier, self._table = barrier, table
        self.calls = 0

    def collect(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls += 1
        self._table[self.rank] = own.copy()
        self._barrier.wait(_PATIENCE_S)
        assert len({array.shape for array in self._table}) == 1
        found = np.stack(self._table)
        self._barrier.wait(_PATIENCE_S)
        return found

    def hand_on(self, rows: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
        self._table[self.rank] = rows.copy()
        self._barrier.wait(_PATIENCE_S)
        found = self._table[source] if self.rank == target else rows
        self._barrier.wait(_PATIENCE_S)
        return found

    def collect_array(self, own: Any) -> Any:
        import mlx.core as mx

        with _MLX:
            mx.eval(own)
            array = np.array(own, dtype=np.float32)
        found = self.collect(array)
        with _MLX:
            return mx.array(found).astype(own.dtype)


def on_threads(ranks: int, work: Callable[[ThreadExchange], _Result]) -> list[_Result]:
    """What `work` returns in every one of `ranks` threads."""
    barrier, table = threading.Barrier(ranks), [None] * ranks
    results: list[Any] = [None] * ranks
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadExchange(rank, barrier, table))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # raised below
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def with_shares(
    ranks: int, store: Store, make: Callable[[Share], Any], work: Callable[[Any], _Result]
) -> list[_Result]:
    """What `work` returns of every rank's runtime, which `make` makes of its share of a store."""
    return on_threads(ranks, lambda exchange: work(make(Share(store.config, store.layout.bucket_size, exchange))))
