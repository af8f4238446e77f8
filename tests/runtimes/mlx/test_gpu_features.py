"""Every feature of the model data on a real GPU: float64, row invariance, trees, drafts, speculation.

Skipped where MLX has no GPU, saying so. The same kernels on the host are in `test_metal_features.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from batches import Company
from featured_models import FEATURED
from float64 import stored_logits
from gpu_models import needed_gpu
from models import real_model_path
from passes import logits_of
from places import DATA
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, quantised_config, tiny_config
from text_model import VOCAB_SIZE, tokenizer_files

import specdec
from specdec.formats import open_source
from specdec.model.architecture import ModelConfig
from specdec.model.effort import EffortSchedule
from specdec.model.features import Feature, features_of
from specdec.model.layers import Attention, Layer, Mlp, Rope
from specdec.runtimes.base import forward_one
from specdec.runtimes.mlx.runtime import MlxRuntime
from specdec.store import Store, convert

needed_gpu()

IDS = [int(token) for token in np.random.default_rng(1).integers(0, 47, 40)]
FAMILIES = sorted(path.parent.name for path in DATA.glob("families/*/expected.json"))
MIXTURE = {"architecture": "mixtral", "num_experts": 4, "experts_per_token": 2, "tie_embeddings": False}


def gemma_shaped() -> ModelConfig:
    """Two of the layers of Gemma 3 270M, with fewer tokens."""
    layers = []
    for window, theta in ((512, 1e4), (None, 1e6)):
        attention = Attention(
            heads=4, kv_heads=1, head_dim=256, rope=Rope(theta=theta), window=window, qk_norm="head", scale=256**-0.5
        )
        layers.append(Layer(attention=attention, mlp=Mlp(width=2048, activation="gelu_tanh"), norms="both"))
    sizes: dict[str, Any] = {"vocab": 8192, "hidden": 640, "eps": 1e-6, "max_context": 2048, "tied": True}
    return ModelConfig(family="gemma3", layers=tuple(layers), norm_offset=1.0, embed_scale=640**0.5, **sizes)


def many_experts() -> ModelConfig:
    """Two of the layers of a mixture with many experts, narrow ones."""
    attention = Attention(heads=8, kv_heads=2, head_dim=64, qk_norm="head")
    mlp = Mlp(width=192, experts=64, experts_used=8, router="softmax-then-top")
    sizes: dict[str, Any] = {"vocab": 1024, "hidden": 512, "eps": 1e-6, "max_context": 2048}
    return ModelConfig(family="qwen3moe", layers=(Layer(attention=attention, mlp=mlp),) * 2, **sizes)


CONFIGS = FEATURED | {
    "mixture": tiny_config(**MIXTURE),
    "gemma-shaped": gemma_shaped(),
    "many-experts": many_experts(),
}
QUANTISED = {"quantised": ("q8_0",), "quantised, several types": ("q4_k", "q6_k", "q4_k", "q8_0", "q5_0")}
MIXTURES = ("mixture", "shared-experts", "clamped", "many-experts")


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """The store of a random model, each made once."""

    @cache
    def build(name: str, dtype: str = "float16") -> Store:
        folder = tmp_path_factory.mktemp("stores") / "store"
        if name in CONFIGS:
            return Store.open(convert(SyntheticSource(CONFIGS[name], dtype=dtype), folder), verify=False)
        config = quantised_config(**MIXTURE)
        types = {matrix: QUANTISED[name][_which(matrix) % len(QUANTISED[name])] for matrix in config.matrices()}
        source = SyntheticSource(config, types=types | {"embed": "q8_0"})
        return Store.open(convert(source, folder, quantised="keep"), verify=False)

    return build


def _which(matrix: str) -> int:
    """A number for each kind of matrix: experts of a layer are of one type, as in files."""
    return sorted(["q", "k", "v", "o", "gate", "up", "down", "head"]).index(matrix.rpartition(".")[2])


@pytest.fixture(scope="module")
def runtime_of(store_of: Callable[..., Store]) -> Callable[..., Any]:
    """A runtime of `store_of`'s store, each made once: its kernels take time to compile."""
    return cache(lambda *given: MlxRuntime(store_of(*given)))


def test_nothing_is_missing() -> None:
    assert set().union(*map(features_of, CONFIGS.values())) | {Feature.MIXTURE} >= set(Feature) - {Feature.QKV_BIAS}
    assert not any(MlxRuntime.missing(config) for config in CONFIGS.values())


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float16") for name in CONFIGS), ("gemma", "bfloat16"), ("clamped", "bfloat16")]
)
def test_logits_match_float64(store_of, runtime_of, name, dtype):
    wanted = stored_logits(store_of(name, dtype), IDS)
    found = logits_of(runtime_of(name, dtype), IDS, 16)
    # As in test_gpu_runtime.py: activations and cache in float16. Rounding may change a close choice of a router.
    errors = np.abs(found - wanted).max(axis=1) / max(1.0, np.abs(wanted).max())
    assert np.quantile(errors, 0.9 if name == "many-experts" else 1.0) < 1e-2
    assert errors.max() < 0.1


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_mixtures_match_float64(store_of, runtime_of, name):
    store = store_of(name)

    def dense(matrix: str) -> np.ndarray:
        if matrix in store.config.tables():
            return store.table_rows(matrix)
        return store.exact(matrix).dequantise()

    wanted = DenseTransformer(store.config, dense, store.vector).logits(IDS)
    assert np.abs(logits_of(runtime_of(name), IDS, 16) - wanted).max() < 1e-2 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "effort"),
    [*((name, 1.0) for name in [*CONFIGS, *QUANTISED]), *((name, 0.4) for name in ["gemma", *MIXTURES, *QUANTISED])],
)
def test_rows_are_the_same_bits_in_any_company(runtime_of, name, effort):
    runtime = runtime_of(name)
    alone = logits_of(runtime, IDS, 1, effort=effort)
    assert np.isfinite(alone).all()
    for piece in (3, 8, 16, 40):
        assert np.array_equal(logits_of(runtime, IDS, piece, effort=effort), alone)


@pytest.mark.parametrize("name", ["gemma", "clamped", "shared-experts", "wide-heads", "many-experts", "quantised"])
def test_batches_and_trees_equal_their_parts(runtime_of, name):
    # Splits of attention end at 256.
    company = Company(runtime_of(name), 3, efforts=(1.0, 0.5), lengths=(3, 250, 17, 200), most=9)
    for number in range(5):
        company.round()
        if number == 1:
            company.fork(1)


@pytest.mark.parametrize(
    ("name", "view"),
    [(name, view) for name in ("gemma", "shared-experts", "clamped") for view in ("int4", "bucket")]
    + [("quantised", view) for view in ("own", "nested", "int4")],
)
def test_drafts_are_the_same_bits_in_any_company(runtime_of, name, view):
    company = Company(runtime_of(name), 7, efforts=(1.0, 0.5), view=view, lengths=(3, 30), most=4)
    for _ in range(3):
        company.round()


def test_windows_leave_out_splits_that_no_row_sees(store_of, runtime_of):
    store, ids, full = store_of("gemma-shaped"), [token * 7 % 8192 for token in range(1100)], EffortSchedule()
    runtime = runtime_of("gemma-shaped")
    together, kv = logits_of(runtime, ids, 1100), runtime.new_cache(1100)
    for first in range(0, 1090, 109):
        forward_one(runtime, ids[first : first + 109], kv, effort=full, logits="last")
    alone = [forward_one(runtime, [token], kv, effort=full).logits[0] for token in ids[1090:]]
    assert np.array_equal(np.array(alone), together[1090:])

    wanted = stored_logits(store, ids)
    assert np.abs(together[-8:] - wanted[-8:]).max() < 1e-2 * np.abs(wanted).max()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_follow_their_golden_logits_and_tokens(tmp_path, name):
    golden = json.loads((DATA / "families" / name / "expected.json").read_text())
    store = convert(open_source(DATA / "families" / name), tmp_path / "store")
    runtime = MlxRuntime(Store.open(store, verify=False))
    ids, wanted = golden["input_ids"][0], np.array(golden["logits"][0])
    found = logits_of(runtime, ids, 16)
    # As in test_gpu_runtime.py: activations and cache in float16.
    assert np.abs(found - wanted).max() < 2e-2
    assert np.array_equal(logits_of(runtime, ids[:20], 1), found[:20])
    kv, greedy = runtime.new_cache(64), golden["greedy_ids"][0]
    logits = forward_one(runtime, ids[: golden["greedy_prompt_len"]], kv, effort=EffortSchedule(), logits="last").logits
    for token in greedy:
        top = np.sort(logits[-1])[-2:]
        assert logits[-1].argmax() == token or top[1] - top[0] < 2e-2
        logits = forward_one(runtime, [token], kv, effort=EffortSchedule()).logits


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A loaded model with a tokenizer, each made once."""

    @cache
    def build(name: str) -> Any:
        source = SyntheticSource(replace(CONFIGS[name], vocab=VOCAB_SIZE))
        source.tokenizer_files = tokenizer_files()
        return specdec.load(convert(source, tmp_path_factory.mktemp("stores") / "store"), runtime="mlx")

    return build


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["gemma", "clamped", "shared-experts"])
def test_speculation_gives_the_tokens_of_plain_decoding(model_of, name, temperature):
    model, options = model_of(name), {"max_tokens": 40, "temperature": temperature, "seed": 3}
    plain = specdec.generate(model, [1, 2, 3], **options, speculate=False)
    for view, effort in (("int4", 1.0), ("bucket", 0.3)):
        drafts: dict[str, Any] = {"policy": "fixed", "drafter": "effort", "draft_view": view, "draft_effort": effort}
        assert specdec.generate(model, [1, 2, 3], **options, **drafts).tokens == plain.tokens


@pytest.mark.model
def test_gemma_follows_the_golden_tokens(tmp_path):
    path, golden = real_model_path("gemma-3-270m"), DATA / "golden_logits-gemma-3-270m.json"
    runtime = MlxRuntime(Store.open(convert(open_source(path), tmp_path / "store", quantised="keep"), verify=False))
    for row in json.loads(golden.read_text())["rows"]:
        prompt, greedy = row["prompt_ids"], row["greedy_ids"]
        logits = logits_of(runtime, (prompt + greedy)[:-1], 512)[len(prompt) - 1 :].astype(np.float64)
        logprobs = logits - logits.max(axis=1, keepdims=True)
        logprobs -= np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
        for step, best in zip(logprobs, row["top5"], strict=True):
            (first, first_logprob), (_, second_logprob) = best[:2]
            assert abs(step[first] - first_logprob) < 0.05
            if first_logprob - second_logprob > 0.05:
                assert step.argmax() == first
