"""Runtimes on quantised stores: logits against the dequantised weights in float64, bit-identity, every draft view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from float64 import float64_logits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from identity import DRAFTERS, POLICIES, assert_identical
from passes import in_passes
from synthetic import SyntheticSource, quantised_config, quantised_source, synthetic_source

from specdec.errors import UnknownNameError
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import Runtime, forward_one
from specdec.runtimes.choose import best_runtime, create_runtime
from specdec.store import BucketLayout, Store, convert
from specdec.weights.base import ViewMatrix
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.nested import NestedMatrix, NestedView
from specdec.weights.quantised import QuantisedMatrix, quantised_types
from specdec.weights.registry import get_view

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "q8_0": ({}, ("q8_0",)),
    "q4_k with q6_k": ({"architecture": "qwen2", "qkv_bias": True, "tie_embeddings": False}, ("q4_k", "q4_k", "q6_k")),
    "all block types": ({}, ("q4_0", "q4_1", "q5_0", "q5_1", "q5_k", "q8_0", "q6_k")),
    "affine in part": ({"architecture": "qwen3", "qk_norm": True}, ("affine4-g64-bf16", "16", "affine8-g32-bf16")),
    "mixture": (
        {"architecture": "mixtral", "num_experts": 4, "experts_per_token": 2, "tie_embeddings": False},
        ("affine4-g128", "affine4-g32", "affine8-g64"),
    ),
}
RUNTIMES = ("reference", "native")
VIEWS = ("exact", "own", "nested", "int4", "bucket8")
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 47, 16)]

Make = Callable[[str, str], tuple[SyntheticSource, Runtime]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Source and runtime of a model of `MODELS`, made once."""
    stores: dict[str, tuple[SyntheticSource, Store]] = {}
    made: dict[tuple[str, str], tuple[SyntheticSource, Runtime]] = {}

    def build(name: str, runtime: str) -> tuple[SyntheticSource, Runtime]:
        if name not in stores:
            shape, types = MODELS[name]
            source = quantised_source(
                quantised_config(**shape), *types, dtype="bfloat16" if "bf16" in types[0] else "float16"
            )
            path = convert(source, tmp_path_factory.mktemp("stores") / "store", quantised="keep")
            stores[name] = source, Store.open(path)
        source, store = stores[name]
        if (name, runtime) not in made:
            made[name, runtime] = source, create_runtime(runtime, store)
        return made[name, runtime]

    return build


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_at_effort_one_are_those_of_the_dequantised_weights(make: Make, name: str, runtime: str) -> None:
    source, made = make(name, runtime)
    logits = forward_one(made, TOKENS, made.new_cache(64), effort=EffortSchedule(1.0)).logits
    # Float32 sums over up to 512 inputs against float64: 1e-5 measured on logits of up to 4. The native runtime's cache
    # is float16.
    np.testing.assert_allclose(
        logits, float64_logits(source, TOKENS), rtol=0, atol=4e-5 if runtime == "reference" else 5e-3
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_pass_equal_single_rows_bit_for_bit(make: Make, name: str, view: str, runtime: str) -> None:
    _, made = make(name, runtime)
    if view not in ("exact", *made.views()):
        pytest.skip(f"{runtime} has no view {view!r}")
    for effort in (1.0, 0.6, 0.15):
        schedule = EffortSchedule(effort)
        alone = in_passes(made, TOKENS, [1] * 16, effort=schedule, view=view)
        together = in_passes(made, TOKENS, [16], capacity=300, effort=schedule, view=view)
        mixed = in_passes(made, TOKENS, [7, 1, 2, 6], capacity=100, effort=schedule, view=view)
        assert np.array_equal(alone, together)
        assert np.array_equal(alone, mixed)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["q4_k with q6_k", "affine in part"])
@pytest.mark.filterwarnings("ignore:draft effort:UserWarning")
@given(
    prompt=st.lists(st.integers(0, 46), min_size=1, max_size=4),
    view=st.sampled_from(["own", "nested", "int4", "own,nested"]),
    policy=st.sampled_from(POLICIES),
    drafter=st.sampled_from(DRAFTERS),
    draft_effort=st.floats(0.1, 1.0),
    verify_effort=st.sampled_from([1.0, 0.6]),
    temperature=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_speculation_changes_no_token(
    make, name, runtime, prompt, view, policy, drafter, draft_effort, verify_effort, temperature
):
    _, made = make(name, runtime)
    drafting = {"draft_view": view, "policy": policy, "drafter": drafter, "draft_effort": draft_effort}
    options = {"max_tokens": 8, "verify_effort": verify_effort, "temperature": temperature, "seed": 0}
    assert_identical(Model(made), prompt, drafting, **options)


@pytest.mark.parametrize("types", [("q4_k", "q6_k", "16"), ("q8_0",), ("affine4-g64-bf16", "q5_1")])
def test_int4_drafts_are_built_as_they_would_be_stored(types: tuple[str, ...], tmp_path: Any) -> None:
    source = quantised_source(quantised_config(), *types)
    found = []
    for views in ((), ("int4",)):
        store = Store.open(convert(source, tmp_path / f"s{len(views)}", quantised="keep", views=views))
        runtime = create_runtime("native", store)
        runtime.prepare("int4")
        found.append(forward_one(runtime, TOKENS, runtime.new_cache(16), effort=EffortSchedule(), view="int4").logits)
    # As for 16-bit weights, the order in which squared errors are added may decide between two scales as good.
    built, stored = (logits.astype(np.float64).ravel() for logits in found)
    assert built @ stored > 0.9999 * np.linalg.norm(built) * np.linalg.norm(stored)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_views_are_those_that_make_sense(make: Make, runtime: str, tmp_path: Any) -> None:
    _, made = make("q8_0", runtime)
    assert {"own", "nested", "int4"} <= set(made.views())
    assert made.info.auto_draft[0] in made.views()
    with pytest.raises(UnknownNameError, match="view 'bucket' needs 16-bit weights: choose from "):
        made.prepare("bucket")
    plain = create_runtime(runtime, Store.open(convert(synthetic_source(), tmp_path / "s")))
    assert not {"own", "nested"} & set(plain.views())
    with pytest.raises(UnknownNameError, match=r"view 'own' needs quantised weights: choose from .*int4"):
        plain.prepare("own")


def test_auto_takes_a_runtime_that_can(make: Make, tmp_path: Any) -> None:
    path = convert(quantised_source(quantised_config(), "q8_0"), tmp_path / "s", quantised="keep")
    assert create_runtime("auto", Store.open(path)).info.name == best_runtime()


def nested_weights(matrix: QuantisedMatrix, bits: int) -> np.ndarray:
    """The definition, written out again: codes of which the lower bits are half their range."""
    kind = matrix.kind
    hidden = max(0, kind.bits - bits)
    codes = (matrix.codes().astype(np.int32) >> hidden) * 2**hidden
    seen = (codes + (2**hidden - 1) / 2 - kind.zero).astype(np.float32)
    scale, offset = (
        None if part is None else np.repeat(part, kind.group, axis=1) for part in matrix.scale_and_offset()
    )
    return seen * scale if offset is None else seen * scale - offset


@pytest.mark.parametrize("kind", quantised_types())
def test_nested_weights_are_the_upper_bits(kind: str) -> None:
    source = quantised_source(quantised_config(), kind)
    exact = QuantisedMatrix.from_table(source.quantised("layers.0.mlp.down", kind))
    for bits in (4, 3, 2):
        nested = NestedMatrix(exact, bits)
        assert np.array_equal(nested.dequantise(), nested_weights(exact, bits))
        step = np.abs(np.repeat(exact.scale_and_offset()[0], exact.kind.group, axis=1))
        hidden = max(0, exact.kind.bits - bits)
        # Off by half of what the hidden bits span, and a rounding.
        assert (np.abs(nested.dequantise() - exact.dequantise()) <= step * (2**hidden - 1) / 2 * 1.0001).all()
        everything = np.ones(exact.shape[1], np.uint8)
        size = exact.shape[0] * exact.shape[1]
        assert nested.bytes_read(everything) == exact.block_bytes - size * hidden // 8
        assert nested.nbytes == 0


@pytest.mark.parametrize("view", ["own", "nested"])
def test_views_without_arrays_of_their_own(view: str) -> None:
    source = quantised_source(quantised_config(), "q6_k", "16")
    exact = QuantisedMatrix.from_table(source.quantised("layers.0.attn.q", "q6_k"))
    kind = get_view(view)
    matrix: ViewMatrix = kind.build(exact)
    assert kind.tensors(exact.shape) == {} == kind.arrays(matrix)
    assert np.array_equal(kind.load({}, exact).dequantise(), matrix.dequantise())
    bucketed = BucketedMatrix.from_dense(source.matrix("layers.0.attn.k"), dtype="float16", layout=BucketLayout())
    assert NestedView().build(bucketed) is bucketed
