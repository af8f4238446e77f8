"""Features of the native runtime beyond the plain decoder, singly and several at once: against float64, drafts against
the reference runtime. That rows do not depend on each other with them is in `test_native_batch`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from featured_models import FEATURED
from passes import logits_of
from random_models import random_config
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, quantised_source

from specdec.errors import RuntimeUnavailableError
from specdec.model.architecture import ModelConfig
from specdec.model.features import Feature, features_of
from specdec.runtimes.native.runtime import NativeRuntime, native_module
from specdec.store import Store, convert

try:
    ISAS = list(native_module().supported_isas())
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

RANDOM = range(14)
IDS = [int(token) for token in np.random.default_rng(1).integers(0, 47, 30)]


def config_of(model: str | int) -> ModelConfig:
    return FEATURED[model] if isinstance(model, str) else random_config(model)


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """A store of a featured model by its name, or of a random one by its seed; each made once."""

    @cache
    def build(model: str | int, *types: str) -> Store:
        path = tmp_path_factory.mktemp("stores") / "store"
        if types:
            source = quantised_source(random_config(int(model), unit=256), *types)
            return Store.open(convert(source, path, quantised="keep"), verify=False)
        dtype = "bfloat16" if model in RANDOM[::2] else "float16"
        return Store.open(convert(SyntheticSource(config_of(model), dtype=dtype), path), verify=False)

    return build


def float64_logits(store: Store) -> np.ndarray:
    def weights(name: str) -> np.ndarray:
        if name in store.config.tables():
            return store.table_rows(name)
        return store.exact(name).dequantise()

    return DenseTransformer(store.config, weights, store.vector).logits(IDS)


@pytest.mark.parametrize("model", [*FEATURED, *RANDOM])
def test_logits_match_float64(store_of, model):
    store = store_of(model)
    assert NativeRuntime.missing(store.config) == frozenset()
    wanted = float64_logits(store)
    for isa in ISAS:
        runtime = NativeRuntime(store, threads=2, isa=isa)
        found = logits_of(runtime, IDS, 30)
        # The cache holds keys and values in float16 (2^-12 of each); norms of what attention returns, steep caps and
        # experts that weigh almost the same amplify it. Without one of its features a model is off by 0.1 or more.
        assert np.abs(found - wanted).max() < 2e-2 * max(1.0, np.abs(wanted).max())
        assert np.array_equal(logits_of(runtime, IDS, 1), found)
        assert np.array_equal(logits_of(runtime, IDS, 7), found)


def test_the_models_of_this_file_have_every_feature():
    found = {feature for model in (*FEATURED, *RANDOM) for feature in features_of(config_of(model))}
    assert found == set(Feature)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_quantised_logits_match_float64(store_of, seed):
    store = store_of(seed, "q4_k", "q8_0", "16", "q6_k", "q5_0")
    wanted = float64_logits(store)
    for isa in ISAS:
        found = logits_of(NativeRuntime(store, threads=2, isa=isa), IDS, 30)
        assert np.abs(found - wanted).max() < 2e-2 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("model", [*FEATURED, 3, 6])
def test_drafts_are_those_of_the_reference_runtime(store_of, model):
    reference = pytest.importorskip("specdec.runtimes.reference.runtime", reason="needs MLX", exc_type=ImportError)
    store = store_of(model)
    runtimes = NativeRuntime(store, threads=2), reference.ReferenceRuntime(store)
    # Below effort 1 bucket8 and int4 choose inputs for joined matrices here; int4 has scales in 8 bits. A median:
    # float16 keys and values let a row choose others of the experts and inputs that weigh almost the same.
    for view, effort, least in (("bucket", 0.5, 0.99), ("bucket8", 1.0, 0.999), ("int4", 1.0, 0.99)):
        found, wanted = (logits_of(one, IDS[:12], 12, view=view, effort=effort).astype(np.float64) for one in runtimes)
        cosines = (found * wanted).sum(1) / np.sqrt((found**2).sum(1) * (wanted**2).sum(1))
        assert np.median(cosines) >= least, view
