"""Every feature of the model data in the Metal kernels, on the host: each kernel against float64, and whole models.

What runs is the text that MLX is given; see `metal_host_kernels`. On a real GPU: `test_gpu_features.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import Company
from cuda_texts import compile_text, nvcc, use_cuda_texts
from featured_models import FEATURED
from kernel_arrays import close
from metal_host_kernels import compiler
from metal_runtime import use_host
from passes import logits_of
from specdec.kernels.reference.attention import attention_rows
from specdec.kernels.reference.experts import choose_experts, kept_experts, share_to_keep
from specdec.kernels.reference.layers import gated, rms_norm, rotate
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, quantised_config, tiny_config

from specdec.errors import InvalidArgumentError
from specdec.model.features import features_of
from specdec.model.layers import Attention, Mlp, Rope
from specdec.runtimes.mlx.features import missing_features, runs_as_one_kernel
from specdec.runtimes.mlx.pack import pack_dense, padded
from specdec.runtimes.mlx.state import chain, state_of
from specdec.store import Store, convert
from specdec.weights.dtypes import from_float32, to_float32

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

MIXTURE: dict[str, Any] = {"num_experts": 4, "experts_per_token": 2, "architecture": "mixtral", "tie_embeddings": False}
IDS = [int(token) for token in np.random.default_rng(0).integers(0, 47, 16)]


@pytest.fixture
def mx(monkeypatch, programs) -> Any:
    return use_host(monkeypatch, programs)


@pytest.fixture
def ops(mx) -> Any:
    from specdec.runtimes.mlx.ops import Ops

    return Ops(mx, "metal", "float16")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def step_state(mx: Any, rows: int, position: int = 0, *, lines: Sequence[int] | None = None) -> Any:
    """A step of one sequence's rows; or of as many sequences, each with a line of efforts."""
    if lines is None:
        return mx.array(state_of([chain(range(rows), position)], [64]))
    pieces = [chain([0], position, choice=line) for line in lines]
    return mx.array(state_of(pieces, [64] * rows))


def test_every_feature_is_executed_and_one_kernel_runs_only_what_it_knows() -> None:
    assert not any(missing_features(config) for config in FEATURED.values())
    assert not any(runs_as_one_kernel(config) for config in FEATURED.values())
    assert runs_as_one_kernel(tiny_config(qkv_bias=True, architecture="qwen2"))
    assert not runs_as_one_kernel(tiny_config(head_dim=136))
    assert missing_features(tiny_config(head_dim=264)) == {"heads of more than 256"}


@pytest.mark.parametrize(("kind", "share"), [("half", 1.0), ("half", 0.5), ("interleaved", 0.5), ("none", 1.0)])
def test_rotate(mx, ops, kind, share):
    from specdec.runtimes.mlx.attention_ops import AttentionVectors
    from specdec.runtimes.mlx.attention_ops import rotate as rotated

    attention = Attention(
        heads=4, kv_heads=2, head_dim=40, rope=Rope(kind=kind, share=share), bias=True, qk_norm="full", scale=0.3
    )
    heads, size, rows, position = 4, 40, 5, 7
    qkv, bias, norms = random(2, 8, 8 * size), random(8 * size), 1 + random(6 * size) / 10
    turns, growth = random(64, max(1, attention.turned // 2), 2), 1 + np.abs(random(64))
    vectors = AttentionVectors(bias=mx.array(bias), norms=mx.array(norms))
    cache = mx.array(random(2, 2, 64, size).astype(np.float16))
    given = mx.array(qkv), [cache], mx.array(turns) if attention.turned else None, mx.array(growth)
    found = np.array(rotated(ops, attention, vectors, *given, step_state(mx, rows, position), eps=1e-6))[:rows]
    total = (qkv.astype(np.float64).sum(axis=0) + bias)[:rows]
    places = slice(position, position + rows)
    cosines, sines = turns[places, None, :, 0], turns[places, None, :, 1]
    queries = rms_norm(total[:, : heads * size], norms[: heads * size], eps=1e-6).reshape(rows, heads, size)
    keys = rms_norm(total[:, heads * size : 6 * size], norms[heads * size :], eps=1e-6).reshape(rows, 2, size)
    close(found, rotate(queries, cosines, sines, kind=kind) * 0.3 * growth[places, None, None])
    held = np.array(cache)
    close(held[0, :, places].transpose(1, 0, 2), rotate(keys, cosines, sines, kind=kind), 1e-3)  # float16
    close(held[1, :, places].transpose(1, 0, 2), total[:, 6 * size :].reshape(rows, 2, size), 1e-3)


@pytest.mark.parametrize("size", [8, 256])
def test_attention_with_sinks_softcap_window_and_gate(mx, ops, monkeypatch, size):
    from specdec.runtimes.mlx import attention_ops
    from specdec.runtimes.mlx.attention_ops import AttentionVectors

    monkeypatch.setattr(attention_ops, "SPAN", 8)
    attention = Attention(heads=4, kv_heads=2, head_dim=size, softcap=1.5, sinks=True, window=11)
    held, rows = 29, 3
    cache, queries = random(2, 2, 64, size).astype(np.float16), random(8, 4, size) / size**0.5
    sinks, gates = random(4), random(2, 8, 4 * size)
    vectors, state = AttentionVectors(sinks=mx.array(sinks)), step_state(mx, rows, held)
    splits = attention_ops.attend(ops, attention, mx.array(queries), [mx.array(cache)], state, splits=4)
    # Splits that no row's window reaches are not computed: their places hold what memory held, here NaN.
    assert np.isnan(np.array(splits)[:rows, :, 0]).all()
    made, _ = attention_ops.combine(ops, attention, vectors, splits, state, gates=mx.array(gates))
    keys, values = cache[:, :, : held + rows].astype(np.float64)
    wanted = attention_rows(
        queries[:rows], keys, values, window=11, scales=np.ones(rows), cap=1.5, sinks=sinks
    ).reshape(rows, -1)
    wanted /= 1 + np.exp(-gates.astype(np.float64).sum(axis=0)[:rows])
    close(np.array(made)[:rows, 0, : 4 * size], wanted, 1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "clamped_swiglu"])
def test_gates_with_biases_of_experts(mx, ops, activation):
    from specdec.runtimes.mlx.jobs import Jobs

    width, chosen = 40, np.array([2, 0, 1, 2], np.int32)
    parts, bias = random(2, 4, 2 * width) * 6, random(3, 2, width)
    jobs = Jobs(mx.array(chosen), mx.array([2, 2], mx.int32), 4, 2, 3)
    made, _ = ops.gate(
        mx.array(parts), step_state(mx, 2), width=width, draft=False, up_at=width, activation=activation,
        bias=mx.array(bias), jobs=jobs,
    )  # fmt: skip
    total = parts.astype(np.float64).sum(axis=0).reshape(4, 2, width) + bias[chosen]
    close(np.array(made)[:, 0, :width], gated(total[:, 0], total[:, 1], activation=activation), 1e-5)


@pytest.mark.parametrize(
    ("router", "renormalise"), [("top-then-softmax", True), ("softmax-then-top", True), ("softmax-then-top", False)]
)
def test_router_and_sum_of_experts(mx, ops, router, renormalise):
    from specdec.runtimes.mlx import mixture_ops

    mlp = Mlp(width=8, experts=37, experts_used=5, router=router, renormalise=renormalise)
    rows, plain, table, bias = 3, random(8, 100), random(37, 100), random(37)
    table[11], bias[11] = table[4], bias[4]  # of equal ones the lower number is taken
    state = step_state(mx, rows)
    jobs, shares = mixture_ops.route(ops, mlp, mx.array(plain), mx.array(table), state, bias=mx.array(bias))
    chosen = np.array(jobs.chosen).reshape(8, 5)
    down, expert_bias, shared, shared_bias = random(2, 40, 60), random(37, 60), random(3, 8, 60), random(60)
    found = mixture_ops.add_up(
        ops, jobs, shares, mx.array(down), state, bias=mx.array(expert_bias), shared=mx.array(shared),
        shared_bias=mx.array(shared_bias),
    )  # fmt: skip
    assert (chosen[rows:] == -1).all()
    for row in range(rows):
        numbers, weights = choose_experts(plain[row].astype(np.float64) @ table.T.astype(np.float64) + bias, mlp)
        assert np.array_equal(chosen[row], numbers)
        close(np.array(shares)[row], weights, 1e-5)
        each = down[:, row * 5 : row * 5 + 5].astype(np.float64).sum(axis=0) + expert_bias[numbers]
        close(
            np.array(found)[0, row], weights @ each + shared[:, row].astype(np.float64).sum(axis=0) + shared_bias, 1e-5
        )


@pytest.mark.parametrize("renormalise", [True, False])
def test_rows_keep_the_experts_that_the_rule_keeps(mx, ops, renormalise):
    from specdec.runtimes.mlx import mixture_ops

    mlp = Mlp(width=8, experts=37, experts_used=6, router="softmax-then-top", renormalise=renormalise)
    efforts, lines = (0.1, 0.3, 0.6, 1.0), [0, 1, 2, 3, 1, 0, 2]
    plain, table, down = random(8, 100) * 0.3, random(37, 100), random(1, 48, 60)
    table[11] = table[4]
    keep = mx.array([[share_to_keep(effort) if effort < 1 else 2.0] for effort in efforts])
    state = step_state(mx, len(lines), lines=lines)
    jobs, shares = mixture_ops.route(ops, mlp, mx.array(plain), mx.array(table), state, keep=keep)
    chosen, counts = np.array(jobs.chosen).reshape(8, 6), np.array(jobs.kept)
    found = np.array(mixture_ops.add_up(ops, jobs, shares, mx.array(down), state))
    for row, line in enumerate(lines):
        logits = plain[row].astype(np.float64) @ table.T.astype(np.float64)
        rule, places = kept_experts(logits, mlp, effort=efforts[line]), chosen[row] >= 0
        assert chosen[row][places].tolist() == rule.experts.tolist()
        assert counts[row] == len(rule.experts)
        assert not np.array(shares)[row][~places].any()
        close(found[0, row], rule.weights @ down[0, row * 6 : row * 6 + 6][places].astype(np.float64), 1e-5)
    assert len(set(counts[: len(lines)].tolist())) > 2


@pytest.mark.parametrize("masked", [True, False])
def test_kept_experts_take_the_inputs_of_those_left_out(mx, ops, masked):
    from specdec.runtimes.mlx.jobs import Jobs

    wide = np.zeros((2, 1, padded(96)), np.float32)
    wide[:, 0, :96] = random(2, 96)
    jobs = Jobs(mx.array([0, -1, 1, 2], mx.int32), mx.array([1, 2], mx.int32), 4, 2, 3)
    scores, take = mx.array(np.abs(random(3, 96, 1)) + 0.5), mx.array([[30, 31, 32]], mx.int32)
    choose = ops.choose if masked else ops.select
    made = choose(mx.array(wide), scores, take, step_state(mx, 2), (1,), joined=1, jobs=jobs)
    taken = (np.array(made[0] if masked else made)[0, :, :96] != 0).sum(axis=1)
    assert np.abs(taken[[0, 2, 3]] - [60, 31, 32]).max() <= 1


def test_experts_multiply_rows_that_chose_them(mx, ops):
    from specdec.runtimes.mlx.jobs import Jobs
    from specdec.runtimes.mlx.ops import packed_rows

    values, rows = random(3, 40, 96), random(2, 96)
    bits = from_float32(values.reshape(-1, 96), "float16").reshape(values.shape)
    packed = [pack_dense(mx, "metal", mx.array(one), packed_rows(40)) for one in bits]
    weights = mx.concatenate(packed, axis=0).view(mx.float16)
    wide = np.zeros((2, 1, padded(96)), np.float32)
    wide[:, 0, :96] = rows
    chosen = np.array([0, 2, 1, 2], np.int32)
    found = ops.dense(
        weights, mx.array(wide), step_state(mx, 2), outputs=40, jobs=Jobs(mx.array(chosen), None, 4, 2, 3)
    )
    exact = to_float32(bits.reshape(-1, 96), "float16").reshape(values.shape).astype(np.float64)
    close(found, np.stack([exact[expert] @ rows[job // 2] for job, expert in enumerate(chosen)]))


def test_norms_of_what_is_added_and_logits(mx, ops):
    x, parts, bias, post = random(8, 50), random(2, 8, 50), random(50), 1 + random(50)
    added, made, _, plain = ops.norm(
        mx.array(x), None, step_state(mx, 3), eps=1e-6, parts=mx.array(parts), bias=mx.array(bias),
        post=mx.array(post), scale=0.4, plain=True,
    )  # fmt: skip
    wanted = x + 0.4 * rms_norm(parts.astype(np.float64).sum(axis=0) + bias, post, eps=1e-6)
    close(np.array(added)[:3], wanted[:3])
    assert np.array_equal(np.array(made)[:3, 0, :50], np.array(plain)[:3])
    assert np.array_equal(np.array(plain)[:3], np.array(added)[:3])
    found = ops.logits(mx.array(parts), step_state(mx, 3), scale=0.3, cap=2.0)
    close(np.array(found)[:3], 2 * np.tanh(0.3 * parts.astype(np.float64).sum(axis=0)[:3] / 2))


@pytest.fixture
def runtime_of(mx, monkeypatch, tmp_path) -> Any:
    """The runtime of a source with the steps of few sizes, since each kernel takes a second to compile."""
    from specdec.runtimes.mlx import attention_ops, cache, ops, runtime, steps

    for module in (cache, attention_ops, steps):
        monkeypatch.setattr(module, "SPAN", 8)
    monkeypatch.setattr(ops, "ROW_STEPS", (1, 16))
    monkeypatch.setattr(ops, "CACHE_STEPS", (1, 4))
    return lambda source, **how: runtime.MlxRuntime(
        Store.open(convert(source, tmp_path / "store", **how), verify=False)
    )


def check_model(runtime: Any) -> None:
    store = runtime._store

    def dense(matrix: str) -> np.ndarray:
        bits = store.table(matrix) if matrix in store.config.tables() else store.exact(matrix).dense_bits()
        return to_float32(bits, "float16")

    wanted = DenseTransformer(store.config, dense, store.vector).logits(IDS)
    found = logits_of(runtime, IDS, 16)
    assert np.abs(found - wanted).max() < 6e-3  # the float16 of the cache, see test_native_runtime.py
    assert np.array_equal(logits_of(runtime, IDS, 1), found)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURED)
def test_featured_models_match_float64(runtime_of, name):
    check_model(runtime_of(SyntheticSource(FEATURED[name])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clamped", "shared-experts", "gemma"])
@pytest.mark.parametrize("view", ["exact", "int4", "bucket"])
def test_batches_and_trees_equal_their_parts(runtime_of, name, view):
    config = FEATURED[name]
    config = replace(config, layers=config.layers[:2])
    company = Company(
        runtime_of(SyntheticSource(config)), 1, efforts=(1.0, 0.5), view=view, lengths=(3, 9), most=4, capacity=64
    )
    for _ in range(2):
        company.round()


@pytest.mark.slow
@pytest.mark.parametrize("view", ["own", "nested"])
def test_quantised_mixtures_share_steps(runtime_of, view):
    config = quantised_config(**MIXTURE, num_layers=1, intermediate_size=256)
    types = {name: "q4_k" if name.endswith(("gate", "up")) else "q8_0" for name in [*config.matrices(), "embed"]}
    runtime = runtime_of(SyntheticSource(config, types=types), quantised="keep")
    company = Company(runtime, 1, efforts=(1.0, 0.5), view=view, lengths=(3, 9), most=4, capacity=64)
    company.round()


def test_experts_of_several_types_are_refused(runtime_of):
    config = quantised_config(**MIXTURE, num_layers=1, intermediate_size=256)
    types = {name: "q4_k" if ".experts.1." in name else "q8_0" for name in [*config.matrices(), "embed"]}
    with pytest.raises(InvalidArgumentError, match="multiplies by experts of one type"):
        runtime_of(SyntheticSource(config, types=types), quantised="keep")


def test_cuda_kernels_of_other_types_have_other_names(monkeypatch, tmp_path: Path):
    """A row in the exact view and in a draft differ in types alone, and so do models of 16 bits of either kind."""
    collector = use_cuda_texts(monkeypatch)
    from specdec.runtimes.mlx.runtime import MlxRuntime

    for dtype in ("bfloat16", "float16"):
        source = SyntheticSource(replace(FEATURED["gemma"], layers=FEATURED["gemma"].layers[:1]), dtype=dtype)
        runtime = MlxRuntime(Store.open(convert(source, tmp_path / dtype), verify=False))
        for view in ("exact", "int4"):
            logits_of(runtime, IDS[:1], 1, view=view)
    assert len({name for name in collector.texts if "_embed_" in name}) == 2


@pytest.mark.slow
@pytest.mark.skipif(nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("name", "view", "effort"),
    [("gemma", "exact", 1.0), ("clamped", "exact", 0.5), ("shared-experts", "int4", 0.5), ("clamped", "bucket", 0.5)],
)
def test_cuda_kernels_compile(monkeypatch, tmp_path: Path, name, view, effort):
    collector = use_cuda_texts(monkeypatch)
    from specdec.runtimes.mlx.runtime import MlxRuntime

    config = FEATURED[name]
    assert features_of(config)
    source = SyntheticSource(replace(config, layers=config.layers[:2]), dtype="bfloat16")
    runtime = MlxRuntime(Store.open(convert(source, tmp_path / "store"), verify=False))
    logits_of(runtime, IDS, 9, view=view, effort=effort)
    assert {compile_text(tmp_path, *text) for text in collector.texts.items()} == {""}
