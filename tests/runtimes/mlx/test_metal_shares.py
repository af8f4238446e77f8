"""Shares of a model in the GPU runtime, with the Metal kernels on the host and devices that are threads: two devices
give the bits of one that runs a kernel for each phase."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from featured_models import FEATURED
from metal_host_kernels import HostKernels, compiler
from metal_runtime import use_host
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config
from thread_ranks import with_shares

from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import resolve_efforts
from specdec.model.layers import Layer
from specdec.runtimes.base import Rows
from specdec.store import Store, convert

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

IDS = [int(token) for token in np.random.default_rng(3).integers(0, 47, 16)]


@pytest.fixture
def mx(monkeypatch: Any, programs: Path) -> Any:
    """MLX, whose kernels run one at a time: they talk through files."""
    run, lock = HostKernels.run, threading.Lock()

    def alone(*given: Any, **named: Any) -> Any:
        with lock:
            return run(*given, **named)

    monkeypatch.setattr(HostKernels, "run", alone)
    return use_host(monkeypatch, programs)


def wider(config: ModelConfig) -> ModelConfig:
    """The same with heads of 16 outputs, which are whole buckets."""

    def layer(one: Layer) -> Layer:
        factors = one.attention.rope.factors
        rope = replace(one.attention.rope, factors=None if factors is None else factors * 2)
        return replace(one, attention=replace(one.attention, head_dim=16, rope=rope))

    return replace(config, layers=tuple(map(layer, config.layers)))


def transcript(runtime: Any, views: tuple[tuple[str, float], ...]) -> list[np.ndarray]:
    found = []
    for view, effort in views:
        efforts = resolve_efforts(effort, runtime.config)
        cache, other = runtime.new_cache(32), runtime.new_cache(32)
        found.append(runtime.forward([Rows(cache, IDS[:5], efforts)], view=view)[0].logits)
        tree = Rows(cache, IDS[:3], efforts, parents=[-1, 0, 0])
        batch = [tree, Rows(other, IDS[5:7], efforts)] if view == "exact" else [Rows(cache, IDS[:1], efforts)]
        found += [one.logits for one in runtime.forward(batch, view=view)]
    return found


def check(mx: Any, store: Store, views: tuple[tuple[str, float], ...], ranks: int = 2) -> None:
    from specdec.runtimes.mlx.runtime import MlxRuntime

    def run(count: int) -> list[list[np.ndarray]]:
        return with_shares(
            count, store, lambda share: MlxRuntime(store, share=share), lambda one: transcript(one, views)
        )

    (alone,) = run(1)
    for found in run(ranks):
        for one, other in zip(found, alone, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.slow
def test_a_small_model_on_two_devices(mx: Any, tmp_path: Path) -> None:
    config = tiny_config(num_heads=4, num_kv_heads=2, head_dim=16, num_layers=1)
    check(mx, Store.open(convert(SyntheticSource(config), tmp_path / "store"), verify=False), (("exact", 1.0),))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gemma", "part-interleaved", "shared-experts", "clamped"])
def test_two_devices_give_the_bits_of_one(mx: Any, tmp_path: Path, model: str) -> None:
    store = Store.open(convert(SyntheticSource(wider(FEATURED[model])), tmp_path / "store"), verify=False)
    check(mx, store, (("exact", 1.0), ("exact", 0.5)))


@pytest.mark.slow
def test_drafts_choose_from_the_whole_row(mx: Any, tmp_path: Path) -> None:
    source = SyntheticSource(tiny_config(num_heads=4, num_kv_heads=2, head_dim=16))
    store = Store.open(convert(source, tmp_path / "store", views=("int4",)), verify=False)
    check(mx, store, (("int4", 1.0), ("int4", 0.5), ("bucket", 0.25)))


@pytest.mark.slow
def test_quantised_devices(mx: Any, tmp_path: Path) -> None:
    config = quantised_config(num_heads=4, num_kv_heads=2, head_dim=64)
    source = quantised_source(config, "q4_k", "q6_k", "q8_0")
    store = Store.open(convert(source, tmp_path / "store", quantised="keep"), verify=False)
    check(mx, store, (("exact", 1.0), ("own", 0.5), ("nested", 1.0)))


@pytest.mark.parametrize(("model", "problem"), [("wide-heads", "hold no head"), ("post-norms", "span all heads")])
def test_what_cannot_be_divided_is_refused(mx: Any, tmp_path: Path, model: str, problem: str) -> None:
    from specdec.runtimes.mlx.runtime import MlxRuntime

    config: ModelConfig = FEATURED[model]
    store = Store.open(convert(SyntheticSource(config), tmp_path / "store"), verify=False)
    with pytest.raises(InvalidArgumentError, match=problem):
        with_shares(2, store, lambda share: MlxRuntime(store, share=share), lambda _: None)
