"""Shares of a model on several devices give the bits of one: every feature, views, efforts, trees and batches, with
devices that are threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from featured_models import FEATURED
from random_models import random_config
from synthetic import SyntheticSource, quantised_source
from thread_ranks import with_shares
from transcripts import MAKE, transcript

from specdec.errors import RuntimeUnavailableError
from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import Runtime
from specdec.runtimes.native.runtime import native_module
from specdec.runtimes.share import Share, bounds_of
from specdec.store import Store, convert
from specdec.weights.layout import BucketLayout

try:
    native_module()
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

# Of sizes whose shares are whole buckets of 64.
WIDE = ModelConfig.uniform(
    family="llama",
    vocab_size=128,
    hidden_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=384,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_context=128,
    tie_embeddings=True,
)


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    @cache
    def build(model: str | int | ModelConfig, *types: str, **given: Any) -> Store:
        path = tmp_path_factory.mktemp("stores") / "store"
        if types:
            source = quantised_source(random_config(int(model), unit=256), *types)
            return Store.open(convert(source, path, quantised="keep"), verify=False)
        config = model if isinstance(model, ModelConfig) else FEATURED.get(model) or random_config(model)
        dtype = "bfloat16" if isinstance(model, int) and model % 2 else "float16"
        return Store.open(convert(SyntheticSource(config, dtype=dtype), path, **given), verify=False)

    return build


def dict_of(runtime: Runtime) -> dict[str, Any]:
    return dict(runtime.views())


def check(store: Store, name: str, ranks: int, **given: Any) -> None:
    alone = transcript(MAKE[name](store), **given)
    shared = with_shares(
        ranks, store, lambda share: MAKE[name](store, share=share), lambda one: transcript(one, **given)
    )
    for rank, found in enumerate(shared):
        assert len(found) == len(alone)
        for number, (one, other) in enumerate(zip(found, alone, strict=True)):
            assert np.array_equal(one, other), f"rank {rank} of {ranks}, result {number}"


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("model", FEATURED)
def test_every_feature_gives_the_bits_of_one_device(store_of: Callable[..., Store], model: str, name: str) -> None:
    for ranks in (2, 3):
        check(store_of(model), name, ranks)


@pytest.mark.parametrize("seed", range(12))
def test_random_models_give_the_bits_of_one_device(store_of: Callable[..., Store], seed: int) -> None:
    for ranks in (2, 3, 4):
        check(store_of(seed), "native", ranks)
    if seed < 4:
        check(store_of(seed), "reference", 4)


@pytest.mark.parametrize("types", [("q4_k", "q6_k"), ("q8_0", "q5_0", "q4_1"), ("affine4-g64", "16")])
@pytest.mark.parametrize("name", MAKE)
def test_quantised_models_and_their_views(store_of: Callable[..., Store], types: tuple[str, ...], name: str) -> None:
    views = (("exact", 1.0), ("exact", 0.4), ("own", 0.5), ("nested", 0.7))
    for ranks in (2, 3):
        check(store_of(3, *types), name, ranks, views=views)


@pytest.mark.parametrize("selection", ["inputs", "tiers"])
@pytest.mark.parametrize("name", MAKE)
def test_efforts_choose_from_the_whole_row(store_of: Callable[..., Store], selection: str, name: str) -> None:
    store = store_of(1, selection=selection)
    check(store, name, 3, views=(("exact", 0.3), ("exact", 0.8), ("bucket", 0.25)))


@pytest.mark.parametrize("view", ["int4", "bucket8"])
def test_reference_drafts_are_those_of_one_device(store_of: Callable[..., Store], view: str) -> None:
    model = "wide-heads" if view == "int4" else WIDE
    check(store_of(model), "reference", 2, views=((view, 0.5), (view, 1.0)))


def test_buckets_that_a_cut_would_divide_make_no_draft_view(store_of: Callable[..., Store]) -> None:
    for name in MAKE:
        views = with_shares(
            2, store_of("gemma"), lambda share, name=name: MAKE[name](store_of("gemma"), share=share), dict_of
        )
        assert all("bucket8" not in one for one in views)


@pytest.mark.parametrize("view", ["int4", "bucket8", "bucket"])
def test_native_drafts_run_on_shares(store_of: Callable[..., Store], view: str) -> None:
    """Those with matrices of their own choose inputs by a device's own scores: the same on all devices, and near those
    of one."""
    store = store_of(WIDE)
    (one,) = [transcript(MAKE["native"](store), views=((view, 0.6),))]
    shared = with_shares(
        2,
        store,
        lambda share: MAKE["native"](store, share=share),
        lambda runtime: transcript(runtime, views=((view, 0.6),)),
    )
    for first, second, alone in zip(*shared, one, strict=True):
        assert np.array_equal(first, second)
        assert np.corrcoef(first.ravel(), alone.ravel())[0, 1] > 0.5


def test_other_layouts_of_buckets(store_of: Callable[..., Store]) -> None:
    store = store_of("part-half", layout=BucketLayout(24, (8, 16)))
    check(store, "native", 2, views=(("exact", 1.0), ("exact", 0.5)))
    check(store, "native", 4)


@pytest.mark.parametrize("total", [1, 7, 64, 100, 4096])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_bounds_cover_everything_evenly(total: int, ranks: int) -> None:
    for unit in (1, 16, 128):
        bounds = bounds_of(total, unit, ranks)
        assert bounds[0] == 0
        assert bounds[-1] == total
        widths = np.diff(bounds)
        assert (widths >= 0).all()
        assert widths.max() - widths.min() <= 2 * unit
        assert all(bound % unit == 0 for bound in bounds[:-1] if bound < total)


def test_memory_is_divided(store_of: Callable[..., Store]) -> None:
    """Of what `memory` counts, a device holds its part, rounded up to units, and vectors."""
    store = store_of(3, "q4_k", "q6_k")
    whole = MAKE["native"](store).memory["exact"]
    parts = with_shares(2, store, lambda share: MAKE["native"](store, share=share), lambda one: one.memory["exact"])
    assert sum(parts) < 1.15 * whole
    assert max(parts) < 0.65 * whole


def test_a_share_has_no_draft_head(store_of: Callable[..., Store]) -> None:
    store = store_of("gemma")

    def heads(runtime: Any) -> bool:
        with pytest.raises(ValueError, match="no draft heads"):
            runtime.draft_head((1, 2))
        return bool(runtime.info.prunes_head)

    for name in MAKE:
        assert with_shares(2, store, lambda share, name=name: MAKE[name](store, share=share), heads) == [False, False]


def test_shares_are_whole_groups_of_heads() -> None:
    class Lone:
        rank, ranks = 1, 2

        def collect(self, own: Any) -> Any:
            return np.stack([own, own])

    for seed in range(20):
        config = random_config(seed)
        share = Share(config, 16, Lone())
        for number, layer in enumerate(config.layers):
            heads, kv_heads = share.heads(number), share.kv_heads(number)
            group = layer.attention.heads // layer.attention.kv_heads
            assert (heads.start, heads.stop) == (kv_heads.start * group, kv_heads.stop * group)
