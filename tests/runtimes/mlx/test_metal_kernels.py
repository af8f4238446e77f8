"""The Metal kernels on the host: against float64, one row against many bit for bit, and under sanitizers.

What runs is the text that MLX is given; see `metal_host_kernels`. Whole models run too, through the runtime's own code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_arrays import activations, close
from metal_host_kernels import HostKernels, compiler
from metal_runtime import use_host
from passes import logits_of
from places import DATA
from specdec.kernels.reference.attention import attention_row
from specdec.kernels.reference.selection import select_tiers
from synthetic import SyntheticSource, tiny_config

from specdec.formats import open_source
from specdec.model.effort import resolve_efforts
from specdec.model.layers import Attention
from specdec.runtimes.base import Rows
from specdec.runtimes.mlx import kernels as mlx_kernels
from specdec.runtimes.mlx.kernels import KernelText, kernel_text
from specdec.runtimes.mlx.pack import (
    bucket_parts,
    int4_parts,
    pack_bucket,
    pack_dense,
    pack_int4,
    pack_tiers,
    padded,
)
from specdec.runtimes.mlx.state import chain
from specdec.runtimes.mlx.state import state_of as state_array
from specdec.store import BucketLayout, Store, convert
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import from_float32, to_float32
from specdec.weights.int4 import Int4View

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

TIERS = (4, 4, 4, 4)


@pytest.fixture
def mx(monkeypatch, programs) -> Any:
    return use_host(monkeypatch, programs)


def make_ops(mx: Any, dtype: str = "float16") -> Any:
    from specdec.runtimes.mlx.ops import Ops

    return Ops(mx, "metal", dtype)


def random_matrix(shape: tuple[int, int], dtype: str = "float16") -> tuple[np.ndarray, np.ndarray]:
    """Raw bits and values."""
    values = np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)
    bits = from_float32(values, dtype)
    return bits, to_float32(bits, dtype)


def state_of(mx: Any, rows: int, position: int = 0) -> Any:
    return mx.array(state_array([chain(range(rows), position)], [512]))


@pytest.mark.parametrize(("size", "dtype"), [((48, 96), "bfloat16"), ((33, 200), "float16")])
def test_dense(mx, size, dtype):
    from specdec.runtimes.mlx.ops import packed_rows

    bits, values = random_matrix(size, dtype)
    kind = mx.float16 if dtype == "float16" else mx.bfloat16
    weights = pack_dense(mx, "metal", mx.array(bits), packed_rows(size[0])).view(kind)
    ops = make_ops(mx, dtype)
    x, rows = activations(mx, 8, size[1])
    together = np.array(ops.dense(weights, x, state_of(mx, 8), outputs=size[0]))
    close(together, rows.astype(np.float64) @ values.T.astype(np.float64))
    alone = np.array(ops.dense(weights, x[2:3], state_of(mx, 1), outputs=size[0]))
    assert np.array_equal(alone[0], together[2])
    some = np.array(ops.dense(weights, x, state_of(mx, 3), outputs=size[0]))
    assert np.array_equal(some[:3], together[:3])
    assert np.isnan(some[3:]).all()  # rows that are not in use stay as they were
    residual = mx.array(np.random.default_rng(5).standard_normal((8, size[0])).astype(np.float32))
    added = ops.dense(weights, x, state_of(mx, 8), outputs=size[0], residual=residual)
    assert np.array_equal(np.array(added), together + np.array(residual))


def test_dense_with_gate(mx):
    from specdec.runtimes.mlx.weights import Linear

    (gate_bits, gate), (up_bits, up) = random_matrix((56, 96)), random_matrix((56, 96))
    linear = Linear(("gate", "up"), (56, 56), 96, paired=True)
    joined = linear.join(mx, [mx.array(gate_bits), mx.array(up_bits)])
    weights = pack_dense(mx, "metal", joined, linear.rows).view(mx.float16)
    x, rows = activations(mx, 8, 96)
    found = np.array(make_ops(mx).dense(weights, x, state_of(mx, 8), outputs=linear.columns, gated=56))[:, 0]
    gates, ups = rows.astype(np.float64) @ gate.T, rows.astype(np.float64) @ up.T
    close(found[:, :56], gates / (1 + np.exp(-gates)) * ups, 1e-5)
    assert not found[:, 56:].any()
    separate = make_ops(mx).dense(weights, x, state_of(mx, 8), outputs=linear.columns)
    gated, _ = make_ops(mx).gate(separate[None], state_of(mx, 8), width=56, draft=False)
    assert np.array_equal(np.array(gated)[:, 0, :56], found[:, :56])


@pytest.mark.parametrize(("size", "effort"), [((48, 96), 0.1), ((33, 200), 0.6)])
def test_select_and_verify(mx, size, effort):
    from specdec.kernels.reference.selection import weights_to_take

    from specdec.runtimes.mlx.ops import packed_rows

    bits, values = random_matrix(size)
    matrix = BucketedMatrix.from_dense(bits, dtype="float16", layout=BucketLayout())
    tiers = np.ascontiguousarray(matrix.tier_of_weight()[:, : size[0]].T)
    ops, outputs = make_ops(mx), size[0]
    x, rows = activations(mx, 8, size[1])
    scores, take = mx.array(matrix.scores[None]), mx.array([[weights_to_take(effort, size[1] * 16)]])
    prefix = ops.select(x, scores, take, state_of(mx, 8), TIERS, joined=scores.shape[0])
    wanted = np.array([select_tiers(row, matrix.scores, TIERS, effort=effort) for row in rows])
    assert np.array_equal(np.array(prefix)[0, :, : size[1]], wanted)
    weights = pack_dense(mx, "metal", mx.array(bits), packed_rows(outputs)).view(mx.float16)
    planes = pack_tiers(mx, "metal", mx.array(tiers), packed_rows(outputs))
    together = np.array(ops.verify(weights, planes, x, prefix, state_of(mx, 8), outputs=outputs, tiers=4))
    kept = [
        np.where(tiers < chosen, values, 0).astype(np.float64) @ row for row, chosen in zip(rows, wanted, strict=True)
    ]
    close(together, np.array(kept))
    alone = ops.verify(weights, planes, x[5:6], prefix[:, 5:6], state_of(mx, 1), outputs=outputs, tiers=4)
    assert np.array_equal(np.array(alone)[0], together[5])


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (2, 6, 8), (16,)])
def test_selection_breaks_ties_as_the_reference_does(mx, sizes):
    from specdec.kernels.reference.selection import weights_to_take

    rng, width = np.random.default_rng(3), 150
    rows = rng.integers(-2, 3, (8, width)).astype(np.float32)  # many zeros, many equal scores
    scores = np.sort(rng.integers(0, 3, (width, len(sizes))), axis=1)[:, ::-1].astype(np.float32)
    wide = np.zeros((8, 1, padded(width)), np.float32)
    wide[:, 0, :width] = rows
    for effort in (0.001, 0.2, 0.5, 0.77, 0.999):
        take = mx.array([[weights_to_take(effort, width * 16)]])
        found = make_ops(mx).select(
            mx.array(wide), mx.array(scores[None].copy()), take, state_of(mx, 8), sizes, joined=1
        )
        wanted = [select_tiers(row, scores, sizes, effort=effort) for row in rows]
        assert np.array_equal(np.array(found)[0, :, :width], np.array(wanted))


@pytest.mark.parametrize("size", [(48, 96), (300, 200)])
def test_int4(mx, size):
    bits, _ = random_matrix(size)
    matrix = Int4View().build(BucketedMatrix.from_dense(bits, dtype="float16", layout=BucketLayout()))
    levels, scales = int4_parts(matrix)
    packed = pack_int4(mx, "metal", mx.array(levels), mx.array(scales), mx.array(matrix.scores))
    x, rows = activations(mx, 1, size[1])
    x[0, 0, 3:40] = 0
    rows[0, 3:40] = 0
    found = np.array(make_ops(mx).int4(packed.levels, packed.scales, x, outputs=size[0]))
    close(found.sum(axis=0), rows.astype(np.float64) @ matrix.dequantise().T.astype(np.float64))


@pytest.mark.parametrize(("size", "tiers"), [((48, 96), (8, 8)), ((300, 200), TIERS)])
def test_bucket(mx, size, tiers):
    bits, values = random_matrix(size)
    matrix = BucketedMatrix.from_dense(bits, dtype="float16", layout=BucketLayout(16, tiers))
    records = pack_bucket(mx, *[mx.array(part) for part in bucket_parts(matrix)])
    x, rows = activations(mx, 1, size[1])
    chosen = select_tiers(rows[0], matrix.scores, tiers, effort=0.3)
    counts = np.zeros(padded(size[1]), np.uint8)
    counts[: size[1]] = chosen * (tiers[0] // 4)
    found = np.array(make_ops(mx).bucket(records, x, mx.array(counts), outputs=size[0]))
    kept = np.where(chosen > matrix.tier_of_weight()[:, : size[0]].T, values, 0).astype(np.float64)
    close(found.sum(axis=0)[0], kept @ rows[0])


@pytest.mark.parametrize("selects", [False, True])
def test_norm_adds_parts_and_selects(mx, selects):
    from specdec.runtimes.mlx.ops import Selection

    rng = np.random.default_rng(2)
    x, parts = rng.standard_normal((1, 600)).astype(np.float32), rng.standard_normal((3, 1, 600)).astype(np.float32)
    weight, scores = rng.random(600).astype(np.float32), rng.random((600, 1)).astype(np.float32)
    chosen = Selection(mx.array(scores), mx.array([[200]]), (1,), counts=False) if selects else None
    added, made, _, _ = make_ops(mx).norm(
        mx.array(x), mx.array(weight), state_of(mx, 1), eps=1e-5, parts=mx.array(parts), draft=True, selection=chosen
    )
    total = x.astype(np.float64) + parts.sum(axis=0, dtype=np.float64)
    close(added, total)
    wanted = total / np.sqrt((total**2).mean() + 1e-5) * weight
    if selects:
        wanted[0, select_tiers(wanted[0].astype(np.float32), scores, (1,), effort=1 / 3) == 0] = 0
    close(np.array(made)[:, 0, :600], wanted)


@pytest.mark.parametrize(("window", "norms"), [(None, False), (100, True)])
def test_attention(mx, window, norms):
    from specdec.runtimes.mlx import attention_ops
    from specdec.runtimes.mlx.attention_ops import AttentionVectors

    heads, kv_heads, size, held, rows = 4, 2, 16, 300, 5
    rng = np.random.default_rng(4)
    past = rng.standard_normal((2, kv_heads, 512, size)).astype(np.float16)
    qkv = rng.standard_normal((1, 8, (heads + 2 * kv_heads) * size)).astype(np.float32)
    bias = rng.standard_normal(qkv.shape[2]).astype(np.float32)
    scales = 1 + rng.random((2, size)).astype(np.float32)
    turns = np.arange(512)[:, None] * (10000.0 ** (-np.arange(size // 2) / (size // 2)))
    angles = np.stack([np.cos(turns), np.sin(turns)], axis=-1).astype(np.float32)
    ops = make_ops(mx)
    attention = Attention(
        heads=heads, kv_heads=kv_heads, head_dim=size, bias=True, window=window, qk_norm="head" if norms else "none"
    )
    vectors = AttentionVectors(bias=mx.array(bias), norms=mx.array(scales.ravel()) if norms else None)

    def run(first: int, count: int, cache: Any, step: int) -> tuple[np.ndarray, Any]:
        given = np.full((1, step, qkv.shape[2]), np.nan, np.float32)
        given[:, :count] = qkv[:, first : first + count]
        state = state_of(mx, count, held + first)
        queries = attention_ops.rotate(
            ops, attention, vectors, mx.array(given), [cache], mx.array(angles), None, state, eps=1e-6
        )
        splits = attention_ops.attend(ops, attention, queries, [cache], state, splits=2)
        made, _ = attention_ops.combine(ops, attention, vectors, splits, state)
        return np.array(made)[:count, 0, : heads * size], cache

    together, cache = run(0, rows, mx.array(past), 8)
    heads_of = (qkv[0] + bias).reshape(8, -1, size).astype(np.float64)
    if norms:
        turning = heads_of[:, : heads + kv_heads]
        turning /= np.sqrt((turning**2).mean(-1, keepdims=True) + 1e-6)
        turning[:, :heads] *= scales[0]
        turning[:, heads:] *= scales[1]
    cos, sin = (angles[held : held + 8, None, :, n].astype(np.float64) for n in (0, 1))
    low, high = np.split(heads_of[:, : heads + kv_heads], 2, axis=-1)
    turned = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    keys, values = past[0].astype(np.float64), past[1].astype(np.float64)
    keys[:, held : held + 8] = turned[:, heads:].transpose(1, 0, 2)
    values[:, held : held + 8] = heads_of[:, heads + kv_heads :].transpose(1, 0, 2)
    for row in range(rows):
        end = held + row + 1
        wanted = attention_row(turned[row, :heads], keys[:, :end], values[:, :end], window=window).reshape(-1)
        # The new keys and values are float16: 2^-11 of each, in scores of up to a few units.
        assert np.abs(together[row] - wanted).max() < 5e-3 * np.abs(wanted).max()
    assert np.abs(np.array(cache)[0, :, held : held + rows] - keys[:, held : held + rows]).max() < 5e-3
    assert np.array_equal(np.array(cache)[:, :, held + rows :], past[:, :, held + rows :])
    one_by_one, cache = [], mx.array(past)
    for row in range(rows):
        found, cache = run(row, 1, cache, 1)
        one_by_one.append(found[0])
    assert np.array_equal(np.array(one_by_one), together)


@pytest.fixture
def runtime_of(mx, monkeypatch, tmp_path):
    """The runtime of a source, on the host."""
    from specdec.runtimes.mlx.runtime import MlxRuntime

    return lambda source: MlxRuntime(Store.open(convert(source, tmp_path / "store"), verify=False))


def test_a_whole_model_gives_the_golden_logits(runtime_of, monkeypatch):
    from specdec.runtimes.mlx import model as mlx_model

    rounded = mlx_model.rotary_frequencies
    monkeypatch.setattr(
        mlx_model, "rotary_frequencies", lambda config, layer: rounded(config, layer).astype(np.float16).astype(float)
    )
    golden = json.loads((DATA / "tiny-qwen3" / "expected.json").read_text())
    runtime = runtime_of(open_source(DATA / "tiny-qwen3"))
    ids, wanted = golden["input_ids"][0][:16], np.array(golden["logits"][0][:16])
    # As in test_native_runtime.py: what is left is the float16 of the cache.
    assert np.abs(logits_of(runtime, ids, 16) - wanted).max() < 6e-3


@pytest.mark.slow
@pytest.mark.parametrize(("view", "effort"), [("exact", 1.0), ("exact", 0.4), ("int4", 0.5), ("bucket", 0.3)])
def test_a_whole_model_gives_each_row_the_same_bits_in_any_company(runtime_of, view, effort):
    runtime = runtime_of(SyntheticSource(tiny_config(num_layers=1, qkv_bias=True, architecture="qwen2")))
    ids = [3, 1, 4, 1, 5, 9, 2]
    alone = logits_of(runtime, ids, 1, view=view, effort=effort)
    assert np.isfinite(alone).all()
    assert np.array_equal(logits_of(runtime, ids, 5, view=view, effort=effort), alone)


@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_a_whole_model_takes_the_inputs_that_the_reference_takes(runtime_of, architecture):
    from specdec.runtimes.reference.runtime import ReferenceRuntime

    config = tiny_config(num_layers=1, architecture=architecture, qk_norm=architecture == "qwen3")
    runtime = runtime_of(SyntheticSource(config))
    ids = [3, 1, 4, 1, 5, 9, 2]
    found = logits_of(runtime, ids, 5, effort=0.5)
    wanted = logits_of(ReferenceRuntime(runtime._store), ids, 5, effort=0.5)
    whole = logits_of(runtime, ids, 5)
    # The cache is float16 and sums differ: a key near the cut-off may fall on its other side in a few rows.
    errors = np.abs(found - wanted).max(axis=1)
    assert np.median(errors) < 1e-2 < 0.1 * np.median(np.abs(whole - wanted).max(axis=1))


@pytest.mark.slow
def test_a_gpu_without_room_for_two_forms_of_the_weights(runtime_of, monkeypatch):
    from specdec.runtimes.mlx.exact_forms import ExactForms

    ids, source = [3, 1, 4, 1], SyntheticSource(tiny_config(num_layers=1))
    runtime = runtime_of(source)
    wanted = {effort: logits_of(runtime, ids, 4, effort=effort) for effort in (1.0, 0.5)}
    assert all(linear.weights is not None and linear.plain for linear in runtime._transformer.linears)
    monkeypatch.setattr(ExactForms, "_has_room", lambda _: False)
    tight = type(runtime)(runtime._store)
    for effort in (0.5, 1.0, 0.5):
        assert np.array_equal(logits_of(tight, ids, 4, effort=effort), wanted[effort])
        for linear in tight._transformer.layers[0].linears:
            assert (linear.weights is None, not linear.plain) == (effort < 1, effort == 1)
    caches = [tight.new_cache(4), tight.new_cache(4)]
    efforts = [resolve_efforts(effort, tight.config) for effort in (1.0, 0.5)]
    both = tight.forward([Rows(cache, ids, each) for cache, each in zip(caches, efforts, strict=True)])
    for made, effort in zip(both, (1.0, 0.5), strict=True):
        assert np.array_equal(made.logits, wanted[effort])


def test_mlx_is_handed_the_text_that_runs_here():
    given: dict[str, Any] = {}

    class Fast:
        @staticmethod
        def metal_kernel(**options: Any) -> Any:
            given.update(options)
            return list

    class FakeMlx:
        fast = Fast

    names = ["norm", "gate", "attention_sum", "select", "embed", "dense", "verify", "int4", "bucket", "attention"]
    for name in [*names, "rotate", "router", "mixture", "logits", "quant", "quant_embed"]:
        text = kernel_text("metal", name, {"ROWS": 8}, inputs=["a"], outputs=["b"])
        mlx_kernels.build(FakeMlx, "metal", text)
        folder = Path(mlx_kernels.__file__).parents[3] / "kernels" / "metal"
        if not folder.exists():
            pytest.skip("needs the source tree")
        file = (folder / f"{name}.metal").read_text()
        for part in ("finish", "tiles_out", "job", "caches"):
            file = file.replace(f'#include "{part}"', (folder / f"{part}.metal").read_text())
        assert given["source"] == text.source == f"#define ROWS 8\n{file}"
        assert given["header"] == text.header == (folder / "prelude.metal").read_text()
        assert given["compile_options"] == {"math_mode": "safe"}


def test_names_follow_the_text():
    one = kernel_text("metal", "norm", {"ROWS": 1}, inputs=["a"], outputs=["b"])
    other = kernel_text("metal", "norm", {"ROWS": 2}, inputs=["a"], outputs=["b"])
    assert one.name != other.name


def tiny_text(source: str) -> KernelText:
    header = mlx_kernels.prelude("metal")
    return KernelText("tiny", header, f"const int tid = thread_position_in_threadgroup.x;\n{source}", ("a",), ("b",))


def run_tiny(folder: Path, source: str, sanitizer: str = "") -> np.ndarray:
    host = HostKernels(folder, sanitizer)
    return host.run(
        tiny_text(source), [np.arange(64, dtype=np.float32)], [((64,), "float32")], blocks=(1, 1), threads=64
    )[0]


def test_the_harness_runs_barriers_and_simdgroups(programs):
    found = run_tiny(programs, "threadgroup float t[64]; t[63 - tid] = a[tid]; BARRIER(); b[tid] = lane_sum(t[tid]);")
    assert np.array_equal(found, np.repeat([sum(range(32, 64)), sum(range(32))], 32))


@pytest.mark.parametrize(
    ("source", "sanitizer", "complaint"),
    [
        ("threadgroup float t[8193]; t[tid] = a[tid]; BARRIER(); b[tid] = t[8192 - tid];", "", "memory is 32772 bytes"),
        ("if (tid < 40) { BARRIER(); } b[tid] = 0;", "", "others wait at a barrier"),
        ("if (tid % 2) { b[tid] = lane_sum(a[tid]); } else { b[tid] = 0; }", "", "exchange values"),
        pytest.param("b[tid] = a[tid + 1];", "address", "heap-buffer-overflow", marks=pytest.mark.slow),
        pytest.param(
            "threadgroup float t[64]; t[tid] = 0; b[tid] = t[63 - tid];", "thread", "data race", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_the_harness_refuses(programs, source, sanitizer, complaint):
    with pytest.raises(AssertionError, match=complaint):
        run_tiny(programs, source, sanitizer)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_under_sanitizers(monkeypatch, tmp_path, sanitizer):
    mx = use_host(monkeypatch, tmp_path, sanitizer)
    test_int4(mx, (300, 200))
    test_bucket(mx, (300, 200), TIERS)
    test_norm_adds_parts_and_selects(mx, selects=True)
    test_attention(mx, None, norms=False)
    if sanitizer == "address":
        # Thousands of shuffles, each of which hundreds of threads would wait for; threadgroup memory they share only in
        # the gate's epilogue, across one barrier.
        test_dense(mx, (33, 200), "float16")
        test_select_and_verify(mx, (33, 200), 0.6)
        test_dense_with_gate(mx)
