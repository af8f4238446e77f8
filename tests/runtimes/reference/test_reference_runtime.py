"""The reference runtime on random models: its logits, their row invariance, its cache, bytes and refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from featured_models import FEATURED
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import in_passes
from specdec.kernels.reference.bucketmul import bucketmul
from specdec.kernels.reference.selection import select_tiers
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, tiny_config

from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.model.effort import EffortSchedule
from specdec.model.features import Feature, features_of
from specdec.runtimes.base import forward_one
from specdec.runtimes.choose import create_runtime, known_runtimes
from specdec.store import BucketLayout, Store, convert
from specdec.weights import registry as view_registry
from specdec.weights.base import View
from specdec.weights.dtypes import to_float32

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

from specdec.runtimes.reference import runtime as reference
from specdec.runtimes.reference.runtime import ReferenceRuntime

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-scaled": {"rope_factors": (1.0, 2.0, 4.0, 8.0), "tie_embeddings": False},
    "mistral": {"architecture": "mistral", "sliding_window": 5, "first_sliding_layer": 1},
    "mixtral": {"architecture": "mixtral", "num_experts": 4, "experts_per_token": 2, "tie_embeddings": False},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "head_dim": 16},
}
CONFIGS = {name: tiny_config(**values) for name, values in ARCHITECTURES.items()} | FEATURED
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 47, 24)]
FULL = EffortSchedule(1.0)

Make = Callable[..., tuple[SyntheticSource, ReferenceRuntime]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runtimes over random models by architecture, dtype, layout and stored views; each made once."""
    made: dict[tuple[Any, ...], tuple[SyntheticSource, ReferenceRuntime]] = {}

    def build(
        name: str = "llama",
        dtype: str = "float16",
        layout: BucketLayout | None = None,
        views: tuple[str, ...] = ("int4",),
    ) -> tuple[SyntheticSource, ReferenceRuntime]:
        key = (name, dtype, layout, views)
        if key not in made:
            source = SyntheticSource(CONFIGS[name], dtype=dtype)
            path = convert(source, tmp_path_factory.mktemp("stores") / "store", layout=layout, views=views)
            made[key] = source, ReferenceRuntime(Store.open(path))
        return made[key]

    return build


def float64_logits(source: SyntheticSource, tokens: list[int]) -> np.ndarray:
    weights = {
        name: to_float32(source.matrix(name), source.dtype)
        for name in source.config.matrices() | source.config.tables()
    }
    return DenseTransformer(source.config, weights.__getitem__, source.vector).logits(tokens)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_at_effort_one_equal_the_float64_model(make: Make, name: str, dtype: str) -> None:
    source, runtime = make(name, dtype)
    logits = forward_one(runtime, TOKENS, runtime.new_cache(64), effort=FULL).logits
    assert logits.dtype == np.float32
    assert logits.shape == (24, 47)
    # Logits up to 4, each after some dozens of float32 roundings of numbers of that size (2.4e-7 each, partly
    # cancelling); largest error measured over all cases 3.4e-6.
    np.testing.assert_allclose(logits, float64_logits(source, TOKENS), rtol=0, atol=1.5e-5)


def test_the_models_here_have_every_feature() -> None:
    assert set().union(*map(features_of, CONFIGS.values())) == set(Feature)
    assert all(not ReferenceRuntime.missing(config) for config in CONFIGS.values())


@pytest.mark.parametrize("view", ["exact", "bucket", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_a_pass_equal_single_rows_bit_for_bit(make: Make, name: str, view: str) -> None:
    _, runtime = make(name)
    for effort in (1.0, 0.6, 0.3, 0.15):
        schedule = EffortSchedule(effort)
        alone = in_passes(runtime, TOKENS, [1] * 24, effort=schedule, view=view)
        together = in_passes(runtime, TOKENS, [24], capacity=600, effort=schedule, view=view)
        mixed = in_passes(runtime, TOKENS, [11, 1, 1, 5, 6], capacity=300, effort=schedule, view=view)
        assert np.array_equal(alone, together)
        assert np.array_equal(alone, mixed)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_split_any_history_of_drafts_gives_the_same_bits(make: Make, data: st.DataObject) -> None:
    """What a draft left behind in the cache, and how the tokens came in, must not show in verified logits."""
    _, runtime = make(data.draw(st.sampled_from(sorted(CONFIGS))))
    schedule = EffortSchedule(
        data.draw(st.sampled_from([1.0, 0.7, 0.3])), {"head": data.draw(st.sampled_from([1.0, 0.5]))}
    )
    expected = in_passes(runtime, TOKENS, [24], effort=schedule, view="exact")
    cache, rows = runtime.new_cache(data.draw(st.integers(24, 700))), []
    while cache.length < 24:
        length = cache.length
        for _ in range(data.draw(st.integers(0, min(3, 23 - length)))):
            token = data.draw(st.integers(0, 46))
            view = data.draw(st.sampled_from(["bucket", "int4"]))
            forward_one(runtime, [token], cache, effort=EffortSchedule(0.2), view=view)
        cache.trim(length)
        count = data.draw(st.integers(1, 24 - length))
        asked = data.draw(st.sampled_from(["all", "last", "none"]))
        result = forward_one(runtime, TOKENS[length : length + count], cache, effort=schedule, logits=asked)
        assert result.logits.shape == ({"all": count, "last": 1, "none": 0}[asked], 47)
        rows.append((cache.length - len(result.logits), result.logits))
    for start, logits in rows:
        assert np.array_equal(logits, expected[start : start + len(logits)])


@pytest.mark.parametrize(
    "layout", [BucketLayout(8, (8,)), BucketLayout(64, (8, 8, 16, 32)), BucketLayout(16, (2, 2, 4, 8))], ids=str
)
def test_other_layouts(make: Make, layout: BucketLayout) -> None:
    source, runtime = make("llama", layout=layout)
    logits = in_passes(runtime, TOKENS, [24], effort=FULL, view="bucket")
    np.testing.assert_allclose(logits, float64_logits(source, TOKENS), rtol=0, atol=1.5e-5)  # as above
    for view in ("exact", "bucket"):
        low = in_passes(runtime, TOKENS, [24], effort=EffortSchedule(0.4), view=view)
        assert np.array_equal(low, in_passes(runtime, TOKENS, [1] * 24, effort=EffortSchedule(0.4), view=view))
        assert not np.array_equal(low, logits)


def test_two_runtimes_and_repeated_passes_agree_bit_for_bit(make: Make) -> None:
    _, runtime = make("mixtral")
    other = ReferenceRuntime(runtime._store)
    for view, effort in (("exact", 1.0), ("exact", 0.5), ("bucket", 0.2), ("int4", 0.5)):
        first = in_passes(runtime, TOKENS, [24], effort=EffortSchedule(effort), view=view)
        assert np.array_equal(first, in_passes(runtime, TOKENS, [24], effort=EffortSchedule(effort), view=view))
        assert np.array_equal(first, in_passes(other, TOKENS, [24], effort=EffortSchedule(effort), view=view))


@pytest.mark.parametrize("view", ["exact", "bucket", "int4"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2"])
def test_every_matrix_is_multiplied_by_bucketmul_at_its_own_effort(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str, view: str
) -> None:
    source, runtime = make(name)
    schedule = EffortSchedule(0.4, {"layers.0.*": 0.7, "layers.*.mlp*.down": 0.2, "head": 1.0})
    runtime.prepare(view)
    by_operand = {id(operand): matrix for matrix, operand in runtime._views[view].items()}
    calls: list[tuple[str, list[float], list[np.ndarray], list[np.ndarray]]] = []
    used = source.config.kinds[0].mlp.experts_used

    def fits(matrix: str, effort: float) -> bool:
        asked = schedule.of(matrix)
        if ".experts." not in matrix:
            return effort == asked
        return effort in [min(1.0, asked * used / kept) for kept in range(1, used + 1)]  # a row may keep fewer experts

    original = reference._Operand.multiply

    def spy(self: Any, rows: list[Any], efforts: list[float]) -> tuple[list[Any], int]:
        assert all(fits(by_operand[id(self)], effort) for effort in efforts)
        results, count = original(self, rows, efforts)
        calls.append(
            (by_operand[id(self)], efforts, [np.array(row)[0] for row in rows], [np.array(row)[0] for row in results])
        )
        return results, count

    monkeypatch.setattr(reference._Operand, "multiply", spy)
    forward_one(runtime, TOKENS[:5], runtime.new_cache(8), effort=schedule, view=view)
    assert {matrix for matrix, *_ in calls} >= {n for n in source.config.matrices() if "experts" not in n}
    for matrix, efforts, rows, results in calls:
        held = runtime._views[view][matrix].matrix
        weights = held.dequantise().T
        tiers = (
            held.tier_of_weight()[:, : weights.shape[1]]
            if len(held.tier_sizes) > 1
            else np.zeros(weights.shape, np.uint8)
        )
        for effort, row, result in zip(efforts, rows, results, strict=True):
            prefix = select_tiers(row, held.scores, held.tier_sizes, effort=effort)
            # A float32 sum of n products is off by at most about n + 1 roundings of sum |v w|.
            bound = (len(row) + 1) * np.finfo(np.float32).eps * (np.abs(row) @ np.abs(weights))
            assert (np.abs(result - bucketmul(row, weights, tiers, prefix)) <= bound).all()


def test_built_and_stored_draft_views_give_the_same_bits(make: Make) -> None:
    stored, built = make("llama", views=("int4",))[1], make("llama", views=())[1]
    results = [in_passes(r, TOKENS, [24], effort=EffortSchedule(0.5), view="int4") for r in (stored, built)]
    assert np.array_equal(*results)


def test_full_effort_of_the_bucket_view_is_the_exact_model(make: Make) -> None:
    _, runtime = make("qwen3")
    exact, bucket = (in_passes(runtime, TOKENS, [24], effort=FULL, view=view) for view in ("exact", "bucket"))
    assert np.array_equal(exact, bucket)


class _Halved(View):
    """A view of another package: whole inputs, weights halved."""

    name = "halved"

    def tensors(self, shape: Any, layout: Any) -> dict[str, Any]:
        raise NotImplementedError

    def arrays(self, matrix: Any) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def load(self, arrays: Any, exact: Any) -> Any:
        raise NotImplementedError

    def build(self, matrix: Any) -> Any:
        return _HalvedMatrix(matrix)


class _HalvedMatrix:
    tier_sizes: tuple[int, ...] = (1,)

    def __init__(self, exact: Any) -> None:
        self._exact, self.shape = exact, exact.shape
        self.scores = exact.scores.mean(axis=1, keepdims=True)

    def dequantise(self) -> np.ndarray:
        return self._exact.dequantise() / 2

    def bytes_read(self, prefix: np.ndarray) -> int:
        return int(np.count_nonzero(prefix)) * self.shape[0]


def test_a_view_of_another_package_runs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ReferenceRuntime(make("llama")[1]._store)
    monkeypatch.setitem(view_registry._views._own, "halved", _Halved)
    assert "halved" in runtime.views()
    schedule = EffortSchedule(0.5, {"layers.*": 1.0})
    low = in_passes(runtime, TOKENS, [24], effort=schedule, view="halved")
    assert np.array_equal(low, in_passes(runtime, TOKENS, [1] * 24, effort=schedule, view="halved"))
    assert not np.array_equal(low, in_passes(runtime, TOKENS, [24], effort=FULL, view="halved"))


def test_a_view_whose_tiers_cannot_be_seen_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ReferenceRuntime(make("llama")[1]._store)
    monkeypatch.setitem(view_registry._views._own, "halved", _Halved)
    monkeypatch.setattr(_HalvedMatrix, "tier_sizes", (2, 2))
    with pytest.raises(InvalidArgumentError, match=r"view 'halved' has tiers but no tier_of_weight"):
        runtime.prepare("halved")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bytes_of_a_dense_step_are_those_of_the_16_bit_model(make: Make, name: str) -> None:
    source, runtime = make(name)
    config, cache = source.config, runtime.new_cache(32)
    forward_one(runtime, TOKENS[:9], cache, effort=FULL)
    read = forward_one(runtime, TOKENS[9:10], cache, effort=FULL).bytes_read
    idle = config.num_experts - config.experts_per_token if config.num_experts else 0
    weights = sum(out * inputs for out, inputs in config.matrices().values())
    weights -= config.num_layers * idle * 3 * config.intermediate_size * config.hidden_size
    weights += config.hidden_size + config.num_layers * config.num_experts * config.hidden_size
    seen = sum(min(10, config.window(layer) or 10) for layer in range(config.num_layers))
    history = seen * 2 * config.num_kv_heads * config.head_dim
    assert read == 2 * weights + 4 * (sum(config.vectors().values()) + history)


def test_bytes_fall_with_effort_and_shared_ones_count_once(make: Make) -> None:
    _, runtime = make("llama")

    def read(count: int, effort: float, view: str) -> int:
        return forward_one(
            runtime, TOKENS[:count], runtime.new_cache(8), effort=EffortSchedule(effort), view=view
        ).bytes_read

    for view in ("exact", "bucket", "int4"):
        assert read(1, 0.15, view) < read(1, 0.3, view) < read(1, 0.6, view)
        assert read(1, 0.3, view) < read(5, 0.3, view) < 5 * read(1, 0.3, view)
    assert read(1, 1.0, "int4") < read(1, 1.0, "exact") / 2


def test_logits_belong_to_the_caller(make: Make) -> None:
    _, runtime = make("llama")
    first = forward_one(runtime, TOKENS[:3], runtime.new_cache(8), effort=FULL).logits
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(kept, forward_one(runtime, TOKENS[:3], runtime.new_cache(8), effort=FULL).logits)


def test_mistakes_of_a_caller_are_refused_and_leave_the_cache_alone(make: Make) -> None:
    _, runtime = make("llama")
    cache = runtime.new_cache(4)
    forward_one(runtime, [1, 2, 3], cache, effort=FULL)
    with pytest.raises(InvalidArgumentError, match="token id 47 is outside the vocabulary of 47"):
        forward_one(runtime, [47], cache, effort=FULL)
    with pytest.raises(InvalidArgumentError, match="token id -1 is outside"):
        forward_one(runtime, [-1], cache, effort=FULL)
    with pytest.raises(InvalidArgumentError, match="at least one token"):
        forward_one(runtime, [], cache, effort=FULL)
    with pytest.raises(InvalidArgumentError, match="holds 3 of at most 4 tokens: no room for 2 more"):
        forward_one(runtime, [1, 2], cache, effort=FULL)
    with pytest.raises(UnknownNameError, match=r"unknown view 'int5': choose from bucket, .*exact, int4"):
        forward_one(runtime, [1], cache, effort=FULL, view="int5")
    with pytest.raises(UnknownNameError):
        runtime.prepare("int5")
    with pytest.raises(InvalidArgumentError, match="matches no matrix"):
        forward_one(runtime, [1], cache, effort=EffortSchedule(1.0, {"layers.7.*": 0.5}))
    with pytest.raises(InvalidArgumentError, match="new_cache of this runtime"):
        forward_one(runtime, [1], make("qwen3")[1].new_cache(4), effort=FULL)
    assert cache.length == 3


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True])
def test_cache_capacity_must_be_a_positive_whole_number(make: Make, capacity: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cache capacity"):
        make("llama")[1].new_cache(capacity)


def test_trim_keeps_a_prefix_and_refuses_the_rest(make: Make) -> None:
    _, runtime = make("llama")
    cache = runtime.new_cache(5)
    forward_one(runtime, [1, 2, 3], cache, effort=FULL)
    for length in (-1, 4, 2.0, True):
        with pytest.raises(InvalidArgumentError, match="a cache of 3 tokens cannot be trimmed to"):
            cache.trim(length)  # type: ignore[arg-type]
    cache.trim(0)
    assert (cache.length, cache.capacity) == (0, 5)


def test_schedules_with_the_same_rules_in_another_order_are_told_apart(make: Make) -> None:
    _, runtime = make("llama")
    rules = {"layers.*": 0.3, "*.down": 0.9}
    one, two = EffortSchedule(1.0, rules), EffortSchedule(1.0, dict(reversed(rules.items())))
    assert one != two  # equal as mappings, but the last matching rule wins
    logits = [in_passes(runtime, TOKENS, [24], effort=schedule, view="exact") for schedule in (one, two)]
    assert not np.array_equal(*logits)


def test_the_first_layers_alone_are_those_of_a_model_that_has_no_others(tmp_path) -> None:
    """A random tensor depends on its name alone, so a shallower random model is the first layers of a deeper one."""
    deep, shallow = (
        ReferenceRuntime(Store.open(convert(SyntheticSource(tiny_config(num_layers=layers)), tmp_path / str(layers))))
        for layers in (3, 2)
    )
    for view in ("exact", "int4"):
        rows, read = [], []
        for runtime, layers in ((deep, 2), (shallow, None)):
            cache, options = runtime.new_cache(16), {"effort": EffortSchedule(0.5), "view": view, "layers": layers}
            passes = [forward_one(runtime, some, cache, **options) for some in (TOKENS[:5], [9])]
            rows.append(np.concatenate([one.logits for one in passes]))
            read.append(sum(one.bytes_read for one in passes))
        assert np.array_equal(rows[0].view(np.uint32), rows[1].view(np.uint32))
        # Beside what the layers read, every pass counts the norms, and the deeper model has a layer's more of them.
        assert read[0] - read[1] == 2 * 4 * 2 * deep.config.hidden_size
    for layers in (0, 4, True, 1.0):
        with pytest.raises(InvalidArgumentError, match="layers must be a whole number from 1 to 3"):
            forward_one(deep, [1], deep.new_cache(4), effort=FULL, layers=layers)  # type: ignore[arg-type]


def test_registry_makes_the_reference_by_name_and_as_auto(make: Make) -> None:
    store = make("llama")[1]._store
    assert "reference" in known_runtimes()
    assert create_runtime("reference", store).info.name == "reference"
    assert create_runtime("auto", store).info.name in known_runtimes()
    with pytest.raises(UnknownNameError, match=r"unknown runtime 'gpu': choose from auto, .*reference"):
        create_runtime("gpu", store)
    for threads in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="threads must be"):
            create_runtime("reference", store, threads=threads)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="threads=3 has no effect"):
        create_runtime("reference", store, threads=3)


def test_without_mlx_the_package_imports_and_the_runtime_says_what_to_install() -> None:
    script = """
import sys
sys.modules["mlx.core"] = None
import specdec, specdec.runtimes.choose
from specdec.errors import RuntimeUnavailableError
try:
    specdec.runtimes.choose.create_runtime("reference", None)
except RuntimeUnavailableError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    wanted = "pip install 'specdec-mlx[cpu]'" if sys.platform == "linux" else "pip install mlx"
    assert wanted in done.stdout
