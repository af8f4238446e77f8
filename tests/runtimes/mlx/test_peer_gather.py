"""Gathers through the memory of other GPUs: the CUDA kernel on the host, with GPUs that are threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host_kernels import Grids, HostCuda, compiler
from thread_ranks import ThreadExchange, on_threads

from specdec.runtimes.mlx import peer
from specdec.runtimes.mlx.cuda_code import whole_text
from specdec.runtimes.mlx.kernels import KernelText
from specdec.runtimes.mlx.peer import PeerGather, PeerMemory, open_peers

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)


class _Refusing(HostCuda):
    """A GPU that cannot open the memory of others."""

    def open_handle(self, handle: bytes) -> int:
        raise OSError("the CUDA driver's cuIpcOpenMemHandle_v2 failed with code 217")


def _opened(ranks: int, tmp_path: Path, refusing: int = -1) -> list[PeerMemory | str]:
    grids = Grids(ranks, tmp_path)

    def work(exchange: ThreadExchange) -> PeerMemory | str:
        kind = _Refusing if exchange.rank == refusing else HostCuda
        return open_peers(kind(exchange.rank, grids), exchange, 4096)  # type: ignore[arg-type]

    return on_threads(ranks, work)


def test_every_rank_sees_the_memory_of_all(tmp_path: Path) -> None:
    found = _opened(3, tmp_path)
    assert all(isinstance(one, PeerMemory) and one.ranks == 3 for one in found)
    assert len({one.addresses for one in found if isinstance(one, PeerMemory)}) == 1


def test_one_refusal_is_everybodys(tmp_path: Path) -> None:
    first, refused, last = _opened(3, tmp_path, refusing=1)
    assert refused == "the CUDA driver's cuIpcOpenMemHandle_v2 failed with code 217"
    assert first == last == "rank 1 could not open the memory of the others"


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("ranks", "bounds", "kind"), [(2, (0, 48, 80), np.float16), (3, (0, 17, 33, 47), np.float32)])
def test_rows_come_together(
    ranks: int, bounds: tuple[int, ...], kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    grids, wide, lines = Grids(ranks, tmp_path), 128, 5
    rows = np.random.default_rng(4).standard_normal((3, lines, bounds[-1])).astype(kind)

    def build(_: Any, backend: str, text: KernelText) -> Any:
        assert backend == "cuda"

        def run(*, inputs: Any, grid: Any, threadgroup: Any, output_shapes: Any, output_dtypes: Any) -> Any:
            rank = next(number for number in range(ranks) if f"#define RANK {number}\n" in text.header)
            arrays = dict(zip(text.inputs, inputs, strict=True))
            whole = whole_text("gather", text.header, text.source, arrays, {"found": output_dtypes[0]}, shapes=[])
            made = np.full(output_shapes[0], np.nan, kind)
            given = [np.array(array) for array in inputs]
            shape = grid[0] // threadgroup[0], threadgroup[0]
            grids.launch(rank, whole.encode(), shape, [*(one.ctypes.data for one in given), made.ctypes.data])
            return [made]

        return run

    monkeypatch.setattr(peer, "build", build)

    def work(exchange: ThreadExchange) -> list[np.ndarray]:
        driver: Any = HostCuda(exchange.rank, grids)
        memory = open_peers(driver, exchange, PeerGather.bytes_for(lines * 48, ranks))
        assert isinstance(memory, PeerMemory)
        gather = PeerGather(mx, memory, patience_s=60)
        own = rows[:, :, bounds[exchange.rank] : bounds[exchange.rank + 1]]
        assert gather.fits(mx.array(own[0]), bounds)
        return [gather(mx.array(one), bounds, wide) for one in own]

    for found in on_threads(ranks, work):
        for made, expected in zip(found, rows, strict=True):
            assert np.array_equal(made[:, : bounds[-1]], expected)
            assert not made[:, bounds[-1] :].any()


def test_what_has_no_whole_words_goes_another_way() -> None:
    import mlx.core as mx

    gather = PeerGather(mx, PeerMemory(0, [1 << 20, 1 << 21], 1 << 16), patience_s=1)
    assert gather.fits(mx.zeros((4, 64), mx.float16), (0, 64, 128))
    assert not gather.fits(mx.zeros((4, 63), mx.float16), (0, 63, 128))
    assert not gather.fits(mx.zeros((1 << 10, 64), mx.float32), (0, 64, 128))  # more than there is memory for
