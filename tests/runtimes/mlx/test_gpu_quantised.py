"""Quantised models on a real GPU, as one kernel a step where that runs and as kernels one by one.

Skipped where MLX has no GPU, saying so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from gpu_models import WAYS, needed_gpu, runtime_in
from passes import logits_of
from specdec.kernels.reference import transformer
from specdec.kernels.reference.layers import rms_norm
from specdec.kernels.reference.selection import select_tiers
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import quantised_config, quantised_source
from test_gpu_runtime import ChoosingTransformer

import specdec
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert
from specdec.weights.dtypes import to_float32
from specdec.weights.nested import NestedMatrix
from specdec.weights.quantised import UpperMatrix

needed_gpu()

# Types of matrices in turn; shapes with joined matrices of several types, biases, norms of queries and keys, an
# embedding table of its own, rows that 32 divides and 64 does not, and matrices in 16 bits, which the one kernel
# does not run.
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "q8_0": ({}, ("q8_0",)),
    "q4_k with q6_k": ({"architecture": "qwen2", "qkv_bias": True, "tie_embeddings": False}, ("q4_k", "q4_k", "q6_k")),
    "all block types": ({}, ("q4_0", "q4_1", "q5_0", "q5_1", "q5_k", "q8_0", "q6_k")),
    "affine": ({"architecture": "qwen3", "qk_norm": True}, ("affine4-g64-bf16", "affine8-g32-bf16")),
    "odd rows": (
        {"hidden_size": 288, "intermediate_size": 352, "num_heads": 9, "num_kv_heads": 3},
        ("q8_0", "q5_0", "affine4-g32", "q5_1"),
    ),
    "affine, wide groups": ({}, ("affine4-g128", "affine8-g64", "affine4-g32")),
    "affine in part": ({"architecture": "qwen3", "qk_norm": True}, ("affine4-g64-bf16", "16", "affine8-g32-bf16")),
}
# Models of which not all is loaded: upper bits of every matrix, with the logits layer that is the table, too; of some;
# of some beside a table of its own, which stays whole.
SHARES = {"q8_0, in part": 0.5, "all block types, in part": 0.85, "q4_k with q6_k, in part": 0.9}
MODELS |= {name: MODELS[name.removesuffix(", in part")] for name in SHARES}
VIEWS = ("exact", "nested")
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 47, 40)]


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Store]]:
    """Source and store of a model of `MODELS`, made once."""

    @cache
    def build(name: str) -> tuple[Any, Store]:
        shape, types = MODELS[name]
        dtype = "bfloat16" if "bf16" in types[0] else "float16"
        source = quantised_source(quantised_config(**shape), *types, dtype=dtype)
        path = convert(source, tmp_path_factory.mktemp("stores") / "store", quantised="keep")
        return source, Store.open(path, load_share=SHARES.get(name, 1.0))

    return build


@pytest.fixture(scope="module")
def runtime_of(store_of: Callable[[str], tuple[Any, Store]]) -> Callable[[str, str], Any]:
    """A runtime of `store_of`'s store that runs a step in one of `WAYS`; made once."""
    return cache(lambda name, way: runtime_in(way, store_of(name)[1]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_at_effort_one_are_those_of_the_dequantised_weights(
    store_of: Callable[[str], tuple[Any, Store]], runtime_of: Callable[[str, str], Any], name: str, way: str
) -> None:
    runtime, (source, store) = runtime_of(name, way), store_of(name)
    upper = {of for of in source.config.matrices() if isinstance(store.exact(of), UpperMatrix)}
    assert bool(upper) == (name in SHARES)

    def weights(of: str) -> np.ndarray:
        if of in upper:
            return np.asarray(store.exact(of).dequantise())
        if of in source.types:
            return np.asarray(source.quantised(of, source.types[of]).dequantise())
        return np.asarray(to_float32(source.matrix(of), source.dtype))

    names = source.config.matrices() | source.config.tables()
    exact = DenseTransformer(source.config, {of: weights(of) for of in names}.__getitem__, source.vector)
    wanted = exact.logits(TOKENS)
    # Keys and values are float16 (2^-12 each), activations 15 bits of the largest of 32: a few 1e-4 in two blocks.
    assert np.linalg.norm(logits_of(runtime, TOKENS, 16) - wanted) < 2e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("effort", [1.0, 0.6])
def test_rows_of_a_pass_equal_single_rows_bit_for_bit(
    runtime_of: Callable[[str, str], Any], name: str, way: str, effort: float
) -> None:
    runtime = runtime_of(name, way)
    single = logits_of(runtime, TOKENS, 1, effort=effort)
    for piece in (2, 4, 5, 7, 16):
        assert np.array_equal(logits_of(runtime, TOKENS, piece, effort=effort), single), piece


class ChoosingQuantised(ChoosingTransformer):
    """The reference on a quantised store, with inputs chosen as the GPU does: a bin of keys at a time in one kernel."""

    def __init__(self, store: Store, view: str, effort: float, way: str) -> None:
        super().__init__(store, view, effort)
        self.sizes, self.way = (1,), way

    def _parts(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if name not in self._kept:
            matrix: Any = self.store.exact(name)
            seen = NestedMatrix(matrix) if self.view == "nested" else matrix
            weights = seen.dequantise()
            self._kept[name] = weights, np.zeros(weights.shape, np.uint8), matrix.scores
        return self._kept[name]

    def _weights(self, name: str) -> np.ndarray:
        matrix: Any = self.store.exact("head")
        return matrix.dequantise() if name == "head" else np.asarray(self.store.table_rows(name))

    def _taken(self, row: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if self.way == "one kernel":
            return super()._taken(row, scores)
        return np.asarray(select_tiers(row, scores, self.sizes, effort=self.effort))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["q8_0", "q4_k with q6_k", "affine", *SHARES])
@pytest.mark.parametrize(("view", "effort"), [("exact", 0.6), ("own", 0.9), ("nested", 1.0), ("nested", 0.9)])
def test_views_agree_with_the_reference(
    store_of: Callable[[str], tuple[Any, Store]], runtime_of: Callable[[str, str], Any],
    monkeypatch: pytest.MonkeyPatch, name: str, way: str, view: str, effort: float,
) -> None:  # fmt: skip
    runtime, reference = runtime_of(name, way), ChoosingQuantised(store_of(name)[1], view, effort, way)

    def noted(x: np.ndarray, weight: np.ndarray, *, eps: float, offset: float) -> np.ndarray:
        if x.ndim == 2:  # not the norms of heads
            reference.scales = 1 / np.sqrt((x * x).mean(axis=-1) + eps)
        return np.asarray(rms_norm(x, weight, eps=eps, offset=offset))

    monkeypatch.setattr(transformer, "rms_norm", noted)
    wanted = reference.logits(TOKENS)
    found = logits_of(runtime, TOKENS, 1, effort=effort, view=view)
    cosine = (wanted * found).sum(axis=1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(found, axis=1)
    # As in test_gpu_runtime: where rounding moves a key over an edge, some of a row's weakest inputs change, and
    # random models amplify it.
    assert np.median(cosine) > {1.0: 0.9999, 0.9: 0.999, 0.6: 0.95}[effort]
    assert cosine.min() > {1.0: 0.999, 0.9: 0.99, 0.6: 0.85}[effort]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["q8_0", "q4_k with q6_k", "affine", *SHARES])
@pytest.mark.parametrize(
    "options",
    [
        {"policy": "fixed", "drafter": "effort", "draft_view": "nested", "draft_effort": 1.0},
        {"policy": "fixed", "drafter": "effort", "draft_view": "own", "draft_effort": 0.5, "verify_effort": 0.8},
        {"temperature": 0.8, "seed": 3},
    ],
    ids=["nested", "own, both below one", "auto, sampled"],
)
def test_speculation_changes_no_token(
    store_of: Callable[[str], tuple[Any, Store]], runtime_of: Callable[[str, str], Any], name: str, way: str,
    options: dict[str, Any],
) -> None:  # fmt: skip
    model = Model(runtime_of(name, way), store=store_of(name)[1])
    given = {key: options[key] for key in options if key in ("verify_effort", "temperature", "seed")}
    plain = specdec.generate(model, TOKENS, max_tokens=24, speculate=False, **given)
    assert specdec.generate(model, TOKENS, max_tokens=24, **options).tokens == plain.tokens


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SHARES)
def test_what_is_not_loaded_is_neither_held_nor_read(
    store_of: Callable[[str], tuple[Any, Store]], runtime_of: Callable[[str, str], Any], name: str, way: str
) -> None:
    part = runtime_of(name, way)
    whole = runtime_of(name.removesuffix(", in part"), way)
    matrices = [
        [matrix for linear in runtime._transformer.linears for matrix in linear.quant] for runtime in (whole, part)
    ]
    without = [(a, b) for a, b in zip(*matrices, strict=True) if b.form.hidden]
    assert sum(isinstance(store_of(name)[1].exact(of), UpperMatrix) for of in part.config.matrices()) == len(without)
    for a, b in without:
        assert a.data.nbytes - b.data.nbytes == 128 * a.tiles * a.inputs * b.form.hidden // 8
    read = [
        {
            view: forward_one(made, [1], made.new_cache(8), effort=EffortSchedule(), view=view).bytes_read
            for view in VIEWS
        }
        for made in (whole, part)
    ]
    assert read[0]["nested"] == read[1]["nested"] <= read[1]["exact"] < read[0]["exact"]
    # The lower bits of whole matrices are all that the draft leaves out.
    same = np.array_equal(logits_of(part, TOKENS[:3], 1, view="nested"), logits_of(part, TOKENS[:3], 1))
    assert same == (read[1]["nested"] == read[1]["exact"]) == (name == "q8_0, in part")
    assert create_runtime("auto", store_of(name)[1]).info.name == "mlx"
