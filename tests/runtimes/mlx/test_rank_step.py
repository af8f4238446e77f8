"""Steps of GPUs that divide a model, each as one kernel: the CUDA kernel on the host, with GPUs that are threads.

Two GPUs give the bits of one, and both the reference's logits up to rounding.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host_kernels import Grids, HostCuda, compiler
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config
from test_metal_shares import wider
from thread_ranks import ThreadExchange, on_threads

from specdec.model.architecture import ModelConfig
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows
from specdec.runtimes.mlx import addresses, rank_step, runtime, wide
from specdec.runtimes.mlx.kernels import Compiled, KernelText
from specdec.runtimes.reference.runtime import ReferenceRuntime
from specdec.runtimes.share import Share
from specdec.store import Store, convert

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

IDS = [int(token) for token in np.random.default_rng(3).integers(0, 47, 16)]
# GPUs have different numbers of heads, which queries share by threes.
UNEVEN = {
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_heads": 6,
    "num_kv_heads": 3,
    "head_dim": 16,
    "vocab_size": 80,
}
LARGE_HEADS = {"num_heads": 2, "head_dim": 64, "num_layers": 1}


class _Texts:
    """Stands for NVRTC: machine code is the text."""

    def code(self, text: str) -> bytes:
        return text.encode()


@pytest.fixture
def use_host(monkeypatch: Any) -> Any:
    """Makes each thread's GPU runtime run its steps on the host: call it in the thread, with its driver."""
    import mlx.core as mx

    from specdec.runtimes.mlx import device

    here = threading.local()

    def addresses_of(_: Any, arrays: Any) -> list[int]:
        mx.eval(list(arrays))
        return [np.array(array, copy=False).ctypes.data for array in arrays]

    def build(_: Any, backend: str, text: KernelText, *, shared_bytes: int = 0) -> Compiled:
        compiler: Any = _Texts()
        return Compiled(mx, text, compiler, shared_bytes)

    monkeypatch.setattr(runtime, "find_gpu", lambda: device.Gpu(mx, "cuda", "host", "0", here.driver))
    monkeypatch.setattr(wide, "prompts_of", lambda *_: None)
    for module in (addresses, rank_step):
        monkeypatch.setattr(module, "addresses_of", addresses_of)
    monkeypatch.setattr(rank_step, "build", build)
    monkeypatch.setattr(rank_step, "cuda_compiler", lambda _: _Texts())
    return lambda driver: setattr(here, "driver", driver)


def transcript(one: Any, passes: list[tuple[str, int]]) -> list[np.ndarray]:
    cache, found = one.new_cache(64), []
    full = resolve_efforts(1.0, one.config)
    for view, count in passes:
        length = cache.length
        found.append(one.forward([Rows(cache, IDS[:count], full)], view=view)[0].logits)
        if view != "exact":
            cache.trim(length)
    return found


def on_gpus(ranks: int, store: Store, use_host: Any, folder: Path, passes: list[tuple[str, int]]) -> list[np.ndarray]:
    """What rank 0's runtime shows; all ranks show the same."""
    folder.mkdir()
    grids = Grids(ranks, folder)

    def work(exchange: ThreadExchange) -> list[np.ndarray]:
        exchange.reaches_memory = True
        use_host(HostCuda(exchange.rank, grids))
        share = Share(store.config, store.layout.bucket_size, exchange)
        made = runtime.MlxRuntime(store, share=share)
        assert made._transformer.ranks is not None
        return transcript(made, passes)

    first, *others = on_threads(ranks, work)
    for other in others:
        assert all(np.array_equal(one, same) for one, same in zip(first, other, strict=True))
    return first


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(convert(SyntheticSource(wider(tiny_config())), tmp_path / "model.store"))


def chosen(one: Any, ahead: int, ends: frozenset[int] = frozenset()) -> list[int]:
    """Tokens that steps choose after a prompt of five, a step of one row at a time or going ahead."""
    cache, full = one.new_cache(64), resolve_efforts(1.0, one.config)
    choices = one.forward([Rows(cache, IDS[:5], full, logits="choices")])[0].choices
    tokens = [choices[-1].token]
    while len(tokens) < 6:
        rows = Rows(cache, tokens[-1:], full, logits="choices", ahead=min(ahead, 5 - len(tokens)), ends=ends)
        tokens += [choice.token for choice in one.forward([rows])[0].choices]
        assert cache.length == 4 + len(tokens)
        if ends & set(tokens):
            break
    return tokens


def test_quantised_models_are_said_to_gain_nothing(use_host: Any, tmp_path: Path) -> None:
    source = quantised_source(quantised_config(num_kv_heads=2), "q8_0")
    store = Store.open(convert(source, tmp_path / "model.store", quantised="keep"))
    grids = Grids(2, tmp_path)

    def work(exchange: ThreadExchange) -> list[str]:
        exchange.reaches_memory = True
        use_host(HostCuda(exchange.rank, grids))
        made = runtime.MlxRuntime(store, share=Share(store.config, store.layout.bucket_size, exchange))
        assert made._transformer.ranks is None
        return []

    with pytest.warns(UserWarning, match="2 GPUs run a step of this model as a kernel for each phase") as found:
        on_threads(2, work)
    assert len(found) == 1


def test_rows_that_are_too_wide_for_a_block_go_through_kernels_for_each_phase(
    store: Store, use_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_step, "_SHARED_BYTES", 4 << 10)
    grids = Grids(2, tmp_path)

    def work(exchange: ThreadExchange) -> list[bool]:
        exchange.reaches_memory = True
        use_host(HostCuda(exchange.rank, grids))
        made = runtime.MlxRuntime(store, share=Share(store.config, store.layout.bucket_size, exchange))
        return [made._transformer.ranks is None]

    with pytest.warns(UserWarning, match="2 GPUs run a step of this model as a kernel for each phase"):
        assert on_threads(2, work) == [[True], [True]]


@pytest.mark.slow
def test_gpus_go_ahead_together(store: Store, use_host: Any, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    grids = Grids(2, tmp_path / "two")

    def work(exchange: ThreadExchange) -> list[list[int]]:
        exchange.reaches_memory = True
        use_host(HostCuda(exchange.rank, grids))
        made = runtime.MlxRuntime(store, share=Share(store.config, store.layout.bucket_size, exchange))
        alone = chosen(made, 0)
        return [alone, chosen(made, 4), chosen(made, 4, frozenset(alone[1:2]))]

    (alone, ahead, ended), other = on_threads(2, work)
    assert other == [alone, ahead, ended]
    cache = (reference := ReferenceRuntime(store)).new_cache(64)
    full = resolve_efforts(1.0, store.config)
    logits = reference.forward([Rows(cache, IDS[:5] + alone[:-1], full)])[0].logits[4:]
    assert alone == logits.argmax(1).tolist()
    assert ahead == alone
    assert ended == alone[:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "passes"),
    [
        (wider(tiny_config()), [("exact", 1), ("exact", 5), ("int4", 1), ("exact", 1)]),
        (tiny_config(**UNEVEN), [("exact", 1), ("exact", 5), ("int4", 1), ("exact", 1)]),
        (tiny_config(**LARGE_HEADS), [("exact", 16), ("exact", 15), ("exact", 5), ("int4", 1), ("exact", 1)]),
    ],
    ids=["even", "uneven", "large heads"],
)
def test_two_gpus_give_the_bits_of_one(
    config: ModelConfig, passes: list[tuple[str, int]], use_host: Any, tmp_path: Path
) -> None:
    store = Store.open(convert(SyntheticSource(config), tmp_path / "model.store"))
    alone = on_gpus(1, store, use_host, tmp_path / "one", passes)
    both = on_gpus(2, store, use_host, tmp_path / "two", passes)
    expected = transcript(ReferenceRuntime(store), passes)
    for one, two, wanted in zip(alone, both, expected, strict=True):
        assert np.array_equal(one, two)
        assert np.abs(one - wanted).max() < 0.02 * np.abs(wanted).max()
