"""Layers in stages give the bits of one device, on rank 0, with ranks that are threads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from featured_models import FEATURED
from random_models import random_config
from synthetic import SyntheticSource, quantised_source
from thread_ranks import on_threads
from transcripts import MAKE, transcript

from specdec.distributed.split import Link, chosen_split, gathered_bytes, gathers_of, layers_s, outputs_s
from specdec.distributed.stages import Stage, StagedRuntime, stage_bounds
from specdec.errors import InvalidArgumentError, RuntimeUnavailableError
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows
from specdec.runtimes.native.runtime import native_module
from specdec.store import Store, convert

try:
    native_module()
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)


def staged(name: str, store: Store, exchange: Any) -> StagedRuntime:
    stage = Stage(store.config, exchange)
    return StagedRuntime(MAKE[name](store, share=stage), stage)


def check(store: Store, name: str, ranks: int, views: tuple[tuple[str, float], ...] = (("exact", 1.0),)) -> None:
    alone = transcript(MAKE[name](store), views=views, parts=False)
    found = on_threads(ranks, lambda exchange: transcript(staged(name, store, exchange), views=views, parts=False))[0]
    for one, other in zip(found, alone, strict=True):
        assert np.array_equal(one, other)


def store_of(folder: Path, model: str | int) -> Store:
    config = FEATURED[model] if isinstance(model, str) else random_config(model)
    return Store.open(convert(SyntheticSource(config), folder / "store"), verify=False)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("model", FEATURED)
def test_every_feature_gives_the_bits_of_one_device(tmp_path: Path, model: str, name: str) -> None:
    check(store_of(tmp_path, model), name, 2)


@pytest.mark.parametrize("seed", [0, 2, 5, 8])
def test_random_models_in_as_many_stages_as_layers(tmp_path: Path, seed: int) -> None:
    store = store_of(tmp_path, seed)
    check(store, "native", store.config.num_layers)


@pytest.mark.parametrize("name", MAKE)
def test_quantised_models_and_their_views(tmp_path: Path, name: str) -> None:
    config = random_config(3, unit=256)
    source = quantised_source(config, "q4_k", "q6_k", "q8_0")
    store = Store.open(convert(source, tmp_path / "store", quantised="keep"), verify=False)
    check(store, name, 2, (("exact", 1.0), ("exact", 0.4), ("own", 0.5), ("nested", 0.7)))


def test_more_stages_than_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="2 layers cannot be divided among 3 ranks"):
        stage_bounds(FEATURED["clamped"], 3)


def test_early_exit_and_states_are_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path, "clamped")

    def refused(exchange: Any) -> None:
        runtime = staged("native", store, exchange)
        efforts = resolve_efforts(1.0, runtime.config)
        with pytest.raises(InvalidArgumentError, match="early exit needs --split outputs"):
            runtime.forward([Rows(runtime.new_cache(8), [1], efforts, layers=1)])
        with pytest.raises(InvalidArgumentError, match="does not show hidden states"):
            runtime.forward([Rows(runtime.new_cache(8), [1], efforts)], states=True)

    on_threads(2, refused)


def test_the_formula_of_the_documentation() -> None:
    """Latency decides between the two ways; one device needs no link."""
    config = FEATURED["gemma"]
    near, far = (Link(latency_s=seconds, bytes_per_s=1e9) for seconds in (1e-6, 1e-2))
    assert gathers_of(config) == 4 * config.num_layers + 2
    assert gathered_bytes(config) == 4 * (3 * (32 + 2 * 32 + 56) + 32 + 47)
    assert outputs_s(config, 0.1, 1, far) == layers_s(config, 0.1, 1, far) == 0.1
    assert outputs_s(config, 0.1, 2, near) < 0.051 < layers_s(config, 0.1, 2, near)
    assert outputs_s(config, 0.1, 2, far) > layers_s(config, 0.1, 2, far)


@pytest.mark.parametrize(
    ("latency_s", "backend", "stages", "found"),
    [(0.1, "ring", True, "layers"), (0.1, "ring", False, "outputs"), (0.1, "nccl", True, "outputs"),
     (1e-5, "ring", True, "outputs")],
)  # fmt: skip
def test_layers_are_divided_where_gathers_are_slow_and_the_runtime_can(
    tmp_path: Path, latency_s: float, backend: str, stages: bool, found: str
) -> None:
    store = store_of(tmp_path, 5)
    group = SimpleNamespace(ranks=2, backend=backend)
    leader: Any = SimpleNamespace(group=group, gather_s=lambda *_: latency_s)
    assert chosen_split("auto", store, leader, stages=stages) == found
    for wanted in ("outputs", "layers"):
        assert chosen_split(wanted, store, leader, stages=stages) == wanted
