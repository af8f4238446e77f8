"""The mlx runtime on a real GPU: golden logits, row invariance, agreement with the reference, refusals.

Skipped where MLX has no GPU, saying so. The kernels themselves, on the host, are in `test_metal_kernels.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from float64 import stored_logits
from gpu_models import needed_gpu
from models import real_model_path
from passes import logits_of
from places import DATA
from specdec.kernels.reference import transformer
from specdec.kernels.reference.layers import rms_norm
from specdec.kernels.reference.selection import select_tiers
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, tiny_config

import specdec
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.formats import open_source
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.mlx import model as mlx_model
from specdec.runtimes.mlx.pack import LINE, int4_parts, padded
from specdec.runtimes.mlx.runtime import MlxRuntime
from specdec.runtimes.mlx.step import BIN_BITS
from specdec.store import BucketLayout, Store, convert
from specdec.weights.dtypes import to_float32

GPU = needed_gpu()

TINY = sorted(path.name for path in DATA.glob("tiny-*"))
FULL = EffortSchedule(1.0)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"architecture": "mistral", "sliding_window": 5, "first_sliding_layer": 1, "tie_embeddings": False},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "head_dim": 16},
}
# Wide enough that a bin of the choice of tiers is a small part of a row.
WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
ARCHITECTURES_WIDE = {f"wide-{name}": WIDE | ARCHITECTURES[name] for name in ("llama", "qwen2")}
IDS = [int(token) for token in np.random.default_rng(1).integers(0, 47, 40)]


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """A store of a folder of test data or of a random model; each made once."""

    @cache
    def build(name: str, dtype: str = "float16", layout: BucketLayout = BucketLayout()) -> Store:  # noqa: B008
        if name in ARCHITECTURES | ARCHITECTURES_WIDE:
            config = tiny_config(**(ARCHITECTURES | ARCHITECTURES_WIDE)[name])
            source: Any = SyntheticSource(config, dtype=dtype)
        else:
            source = open_source(real_model_path(name) if name not in TINY else DATA / name)
        return Store.open(convert(source, tmp_path_factory.mktemp("stores") / "store", layout=layout), verify=False)

    return build


@pytest.fixture(scope="module")
def runtime_of(store_of: Callable[..., Store]) -> Callable[..., Any]:
    """A runtime of `store_of`'s store; each made once, since its kernels take time to compile."""
    return cache(lambda *given: MlxRuntime(store_of(*given)))


@pytest.mark.parametrize("name", TINY)
def test_tiny_logits_and_continuations_are_the_golden_ones(store_of, monkeypatch, name):
    rounded = mlx_model.rotary_frequencies
    monkeypatch.setattr(
        mlx_model, "rotary_frequencies", lambda config, layer: rounded(config, layer).astype(np.float16).astype(float)
    )
    runtime, golden = MlxRuntime(store_of(name)), json.loads((DATA / name / "expected.json").read_text())
    for ids, wanted in zip(golden["input_ids"], golden["logits"], strict=True):
        # Beside the cache's float16 (3.3e-3, see test_native_runtime.py), activations are rounded to float16 before
        # each multiplication (CUDA): as many roundings again for every matrix of a block.
        assert np.abs(logits_of(runtime, ids, 40) - np.array(wanted)).max() < 2e-2
    for ids, wanted in zip(golden["input_ids"], golden["greedy_ids"], strict=True):
        kv, found = runtime.new_cache(64), []
        logits = forward_one(runtime, ids[: golden["greedy_prompt_len"]], kv, effort=FULL, logits="last").logits
        for _ in wanted:
            found.append(int(logits[-1].argmax()))
            logits = forward_one(runtime, found[-1:], kv, effort=FULL).logits
        assert found == wanted


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_models_match_float64(store_of, runtime_of, name, dtype):
    wanted = stored_logits(store_of(name, dtype), IDS)
    # Activations and cache in float16: 2^-12 for each of a few dozen roundings; random models amplify them a little.
    assert np.abs(logits_of(runtime_of(name, dtype), IDS, 30) - wanted).max() < 1e-2 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("effort", [1.0, 0.6, 0.3])
@pytest.mark.parametrize(("name", "dtype"), [("llama", "float16"), ("qwen2", "bfloat16"), ("qwen3", "float16")])
def test_rows_are_the_same_bits_in_any_company(runtime_of, name, dtype, effort):
    runtime = runtime_of(name, dtype)
    alone = logits_of(runtime, IDS, 1, effort=effort)
    for piece in (2, 5, 9, 16, 40):
        assert np.array_equal(logits_of(runtime, IDS, piece, effort=effort), alone)


def test_rows_are_the_same_bits_across_splits_of_attention(runtime_of):
    runtime = runtime_of("mistral")
    ids = IDS * 15  # past two splits
    together = logits_of(runtime, ids, 16)
    kv = runtime.new_cache(len(ids))
    forward_one(runtime, ids[:-20], kv, effort=FULL, logits="last")
    alone = [forward_one(runtime, [token], kv, effort=FULL).logits[0] for token in ids[-20:]]
    assert np.array_equal(np.array(alone), together[-20:])


class ChoosingTransformer(DenseTransformer):
    """The reference at an effort, with tiers chosen as the GPU does.

    Joined matrices of a draft view choose together, by their mean scores. All tiers are taken whose keys, before a
    norm's scale, lie in the bin of the last one that `select_tiers` takes or above: a bin is a part of an octave.
    """

    def __init__(self, store: Store, view: str, effort: float) -> None:
        super().__init__(store.config, lambda name: self._weights(name), store.vector)
        self.scales: np.ndarray = np.ones(0)  # of the last norm of whole rows
        self.store, self.view, self.effort = store, view, effort
        self.sizes = (1,) if view == "int4" else store.layout.tier_sizes
        self._kept: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _parts(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (out, in), their tiers, and scores (in, K) of a matrix in the view."""
        if name not in self._kept:
            if self.view == "int4":
                levels, scales = int4_parts(self.store.draft("int4", name))
                groups = np.repeat(scales.astype(np.float32), 32, axis=0)[: len(levels)]
                weights = ((levels.astype(np.float32) - 8) * groups).T
                self._kept[name] = weights, np.zeros(weights.shape, np.uint8), self.store.draft("int4", name).scores
            else:
                matrix = self.store.bucketed(name)
                weights = to_float32(matrix.dense_bits(), self.store.dtype)
                scores = matrix.scores
                if self.view == "exact" and self.store.selection == "inputs":  # all tiers of an input score alike
                    scores = np.repeat(self.store.input_scores(name), len(self.sizes), axis=1)
                self._kept[name] = weights, matrix.tier_of_weight()[:, : len(weights)].T, scores
        return self._kept[name]

    def _weights(self, name: str) -> np.ndarray:
        if name in self.store.config.tables():
            return to_float32(self.store.table(name), self.store.dtype)
        return (
            self._parts(name)[0]
            if name != "head"
            else to_float32(self.store.bucketed(name).dense_bits(), self.store.dtype)
        )

    def _multiply(self, name: str, rows: np.ndarray, *, bias: bool = False) -> np.ndarray:
        before, _, last = name.rpartition(".")
        joined = {"q": "qkv", "k": "qkv", "v": "qkv"}.get(last, ("gate", "up") if last in ("gate", "up") else (last,))
        together = self.view in ("int4", "bucket")
        names = [f"{before}.{each}" if before else each for each in joined] if together else [name]
        parts = [self._parts(each) for each in names]
        shares = np.array([len(weights) for weights, _, _ in parts], float) / sum(
            len(weights) for weights, _, _ in parts
        )
        scores = sum(part[2].astype(float) * share for part, share in zip(parts, shares, strict=True)).astype(
            np.float32
        )
        weights, tiers, _ = self._parts(name)
        made = []
        scales = np.ones(len(rows)) if last in ("o", "down") else self.scales
        for row, scale in zip(rows, scales, strict=True):
            taken = self._taken((row / scale).astype(np.float32), scores)
            made.append((weights.astype(float) * (tiers < taken)) @ row)
        return np.array(made) + (self.vector(f"{name}.bias") if bias else 0)

    def _taken(self, row: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Tiers that a row takes of each input."""
        taken = select_tiers(row, scores, self.sizes, effort=self.effort)
        bins = (np.abs(row)[:, None] * scores).view(np.int32) >> (23 - BIN_BITS - (self.view not in ("int4", "bucket")))
        held = np.arange(len(self.sizes)) < taken[:, None]
        return (bins >= bins[held].min()).sum(axis=1)


@pytest.mark.parametrize(
    ("name", "dtype"), [("wide-llama", "float16"), ("wide-qwen2", "bfloat16"), ("qwen3", "float16")]
)
def test_inputs_that_no_row_takes_are_not_read(store_of, name, dtype):
    def logits(poison: float) -> list[np.ndarray]:
        runtime = MlxRuntime(store_of(name, dtype))
        runtime._need_forms({"inputs"})
        for number, linear in enumerate(runtime._transformer.linears):
            left_out = np.random.default_rng(number).random(linear.inputs) < 0.3
            scores = np.array(linear.scores)
            scores[:, left_out] = 0  # the last ones to be taken
            linear.scores = GPU.mx.array(scores) + GPU.mx.zeros(())
            padding = np.zeros(padded(linear.inputs) - linear.inputs, bool)
            lines = np.array(linear.lines.astype(GPU.mx.float32)).reshape(-1, padded(linear.inputs), LINE)
            lines[:, np.concatenate([left_out, padding])] = poison
            linear.lines = GPU.mx.array(lines.reshape(-1)).astype(linear.lines.dtype)
            GPU.mx.eval(linear.scores, linear.lines)
        return [logits_of(runtime, IDS, piece, effort=0.5) for piece in (1, 5, 16)]

    poisoned = logits(np.nan)
    assert np.isfinite(poisoned[0]).all()
    for found in (*poisoned, *logits(0.0)):
        assert np.array_equal(found, poisoned[0])


@pytest.mark.parametrize(
    ("view", "effort"),
    [("exact", 1.0), ("exact", 0.9), ("exact", 0.6), ("int4", 1.0), ("int4", 0.9), ("bucket", 1.0), ("bucket", 0.9)],
)
@pytest.mark.parametrize("name", ARCHITECTURES_WIDE)
def test_views_agree_with_the_reference(store_of, runtime_of, monkeypatch, name, view, effort):
    reference = ChoosingTransformer(store_of(name), view, effort)

    def noted(x: np.ndarray, weight: np.ndarray, *, eps: float, offset: float) -> np.ndarray:
        if x.ndim == 2:  # not the norms of heads
            reference.scales = 1 / np.sqrt((x * x).mean(axis=-1) + eps)
        return rms_norm(x, weight, eps=eps, offset=offset)

    monkeypatch.setattr(transformer, "rms_norm", noted)
    wanted = reference.logits(IDS)
    found = logits_of(runtime_of(name), IDS, 16, effort=effort, view=view)
    cosine = (wanted * found).sum(axis=1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(found, axis=1)
    # Activations and cache are rounded to float16, and 4-bit weights multiply 15 bits of them. Where that moves a key
    # over the edge of its bin, or the cut-off to the next bin, some of a row's weakest inputs change. Random models
    # amplify it: float16 activations alone take the reference's own logits to 1 - 1e-5 at 0.9 and 1 - 2e-3 at 0.6.
    assert np.median(cosine) > {1.0: 0.9999, 0.9: 0.999, 0.6: 0.95}[effort]
    assert cosine.min() > {1.0: 0.999, 0.9: 0.99, 0.6: 0.85}[effort]


def test_a_trimmed_cache_and_drafts_leave_nothing_behind(runtime_of):
    runtime = runtime_of("llama")
    wanted = logits_of(runtime, IDS[:20], 20)
    kv = runtime.new_cache(40)
    forward_one(runtime, IDS[:10], kv, effort=FULL)
    for token in (1, 2, 3):
        forward_one(runtime, [token], kv, effort=EffortSchedule(0.5), view="int4")
    kv.trim(10)
    assert np.array_equal(forward_one(runtime, IDS[10:20], kv, effort=FULL).logits, wanted[10:])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("view", "effort"), [("int4", 0.5), ("bucket", 0.25)])
def test_speculation_gives_the_tokens_of_plain_decoding(text_model, temperature, view, effort):
    model = specdec.load(text_model, runtime="mlx")
    options: dict[str, Any] = {"max_tokens": 40, "temperature": temperature, "seed": 3}
    plain = specdec.generate(model, [1, 2, 3], **options, speculate=False)
    drafts: dict[str, Any] = {"policy": "fixed", "drafter": "effort", "draft_view": view, "draft_effort": effort}
    drafted = specdec.generate(model, [1, 2, 3], **options, **drafts)
    assert drafted.tokens == plain.tokens


def test_what_it_cannot_run_is_refused(store_of, tmp_path):
    store = Store.open(convert(SyntheticSource(tiny_config(head_dim=264)), tmp_path / "store"))
    with pytest.raises(InvalidArgumentError, match="does not execute heads of more than 256"):
        MlxRuntime(store)
    runtime = MlxRuntime(store_of("llama", "float16", BucketLayout(24, (8, 16))))
    with pytest.raises(UnknownNameError, match="int4"):
        runtime.prepare("bucket")
    with pytest.raises(InvalidArgumentError, match="outside the vocabulary"):
        forward_one(runtime, [47], runtime.new_cache(4), effort=FULL)
    kv = runtime.new_cache(2)
    with pytest.raises(InvalidArgumentError, match="no room"):
        forward_one(runtime, [1, 2, 3], kv, effort=FULL)
    assert kv.length == 0


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_real_models_follow_the_golden_tokens(store_of, name):
    runtime = MlxRuntime(store_of(name))
    for row in json.loads((DATA / f"golden_logits-{name}.json").read_text())["rows"]:
        prompt, greedy = row["prompt_ids"], row["greedy_ids"]
        ids = (prompt + greedy)[:-1]
        logits = logits_of(runtime, ids, 512)[len(prompt) - 1 :].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_probabilities = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        for step, best in zip(log_probabilities, row["top5"], strict=True):
            (first, first_logprob), (_, second_logprob) = best[:2]
            # Weights rounded to float16 move these by up to 0.02, activations rounded alike by as much again.
            assert abs(step[first] - first_logprob) < 0.1
            if first_logprob - second_logprob > 0.1:
                assert step.argmax() == first
