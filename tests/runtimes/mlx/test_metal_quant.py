"""Quantised matrices on the GPU runtime, Metal kernels run on the host: every type against float64, rows alone and in
company bit for bit, whole models by view. See `metal_host_kernels` for what runs, `test_metal_kernels` for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from float64 import float64_logits
from identity import assert_identical
from kernel_arrays import activations, close
from metal_host_kernels import compiler
from metal_runtime import use_host
from passes import logits_of
from specdec.kernels.reference.selection import select_tiers, weights_to_take
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, quantised_config, quantised_source, random_table
from useful import useful

from specdec.errors import UnknownNameError
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one
from specdec.runtimes.choose import create_runtime
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.quant import PackedQuant, pack_plain, pack_quant
from specdec.runtimes.mlx.state import chain
from specdec.runtimes.mlx.state import state_of as state_array
from specdec.store import Store, convert
from specdec.weights.dtypes import from_float32, to_float32
from specdec.weights.nested import NestedMatrix
from specdec.weights.quantised import QuantisedMatrix, UpperMatrix, quantised_types

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

# Types are compiled in groups: a kernel takes up to three matrices.
GROUPS = [tuple(quantised_types()[first : first + 3]) for first in range(0, len(quantised_types()), 3)]


def slow(*names: str) -> Any:
    """A group that `make test` leaves out."""
    return pytest.param(names, marks=pytest.mark.slow)


MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "q8_0": ({}, ("q8_0",)),
    "q4_k with q6_k": ({"architecture": "qwen2", "qkv_bias": True, "tie_embeddings": False}, ("q4_k", "q4_k", "q6_k")),
    "affine in part": (
        {"architecture": "qwen3", "qk_norm": True, "hidden_size": 320},
        ("affine4-g64-bf16", "16", "affine8-g32-bf16"),
    ),
}
# How much is loaded of two of them in part: upper bits of all of one, whose logits layer is its table too, and of one
# matrix of the other.
SHARES = {"q8_0": 0.5, "q4_k with q6_k": 0.92}
# Each weight and each of up to 512 products is rounded to float32 once, relative to the largest output.
CLOSE = 3e-6


@pytest.fixture
def mx(monkeypatch, programs) -> Any:
    return use_host(monkeypatch, programs)


def make_ops(mx: Any, backend: str = "metal") -> Any:
    from specdec.runtimes.mlx.ops import Ops

    return Ops(mx, backend, "float16", quantised=True)


def state_of(mx: Any, rows: int, tokens: Any = range(16)) -> Any:
    return mx.array(state_array([chain(list(tokens)[:rows], 0)], [256]))


def matrix_of(name: str, shape: tuple[int, int]) -> QuantisedMatrix:
    return QuantisedMatrix.from_table(random_table(name, shape, np.random.default_rng(shape[0])))


def upper(matrix: QuantisedMatrix) -> UpperMatrix:
    """The same without the lower bits of its codes."""
    return UpperMatrix(matrix.type, matrix.shape, matrix.arrays, matrix.scores)


def packed(mx: Any, matrix: QuantisedMatrix) -> PackedQuant:
    return pack_quant(mx, matrix, mx.array(matrix.scores))


def product(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64) @ weights.T.astype(np.float64)


@pytest.mark.parametrize("names", GROUPS, ids=" ".join)
def test_every_type_alone_and_in_company(mx, names):
    from specdec.runtimes.mlx.quant_ops import multiply

    matrices = [matrix_of(name, (outputs, 256)) for name, outputs in zip(names, (150, 128, 47), strict=False)]
    weights, ops = [packed(mx, matrix) for matrix in matrices], make_ops(mx)
    x, rows = activations(mx, 8, 256)
    together = np.array(multiply(ops, weights, x, state_of(mx, 5)))
    wanted = np.concatenate([product(rows[:5], matrix.dequantise()) for matrix in matrices], axis=1)
    close(together[:, :5].sum(axis=0), wanted, CLOSE)
    assert np.isnan(together[:, 5:]).all()  # rows that are not in use stay as they were
    alone = np.array(multiply(ops, weights, x[3:4], state_of(mx, 1)))
    assert np.array_equal(alone[:, 0], together[:, 3])


@pytest.mark.parametrize("names", [("q8_0", "q5_k", "q6_k"), slow("affine8-g64", "affine4-g32-bf16")], ids=" ".join)
def test_effort_takes_inputs_and_nested_upper_bits(mx, names):
    from specdec.runtimes.mlx.quant_ops import multiply

    matrices = [matrix_of(name, (outputs, 256)) for name, outputs in zip(names, (150, 128, 47), strict=False)]
    weights, ops = [packed(mx, matrix) for matrix in matrices], make_ops(mx)
    x, rows = activations(mx, 8, 256)
    scores = mx.stack([part.scores for part in weights])
    take = mx.array([[weights_to_take(effort, 256) for effort in (0.3, 0.6, 0.1)][: len(names)]])
    taken = [
        np.array([select_tiers(row, matrix.scores, (1,), effort=effort) for row in rows])
        for matrix, effort in zip(matrices, (0.3, 0.6, 0.1), strict=False)
    ]
    chosen = ops.choose(x, scores, take, state_of(mx, 8), joined=len(scores))[0]
    assert np.array_equal(np.array(chosen)[..., :256], [rows * prefix for prefix in taken])
    together = np.array(multiply(ops, weights, chosen, state_of(mx, 8), chosen=True))
    wanted = [product(rows * prefix, matrix.dequantise()) for prefix, matrix in zip(taken, matrices, strict=True)]
    close(together.sum(axis=0), np.concatenate(wanted, axis=1), CLOSE)
    one = ops.choose(x[2:3], scores, take, state_of(mx, 1), joined=len(scores))[0]
    alone = np.array(multiply(ops, weights, one, state_of(mx, 1), chosen=True))
    assert np.array_equal(alone[:, 0], together[:, 2])  # what the row does not read when alone adds nothing in a batch
    nested = np.array(multiply(ops, weights, one, state_of(mx, 1), chosen=True, nested=True))
    wanted = [
        product((rows * prefix)[2:3], NestedMatrix(matrix).dequantise())
        for prefix, matrix in zip(taken, matrices, strict=True)
    ]
    close(nested.sum(axis=0), np.concatenate(wanted, axis=1), CLOSE)


@pytest.mark.parametrize("backend", ["metal", "cuda"])
@pytest.mark.parametrize(
    "names", [("q8_0", "q5_1"), slow("q6_k", "q5_k"), slow("affine8-g64-bf16", "q5_0")], ids=" ".join
)
def test_upper_bits_alone_are_what_a_nested_draft_sees_of_the_whole(mx, names, backend):
    from specdec.runtimes.mlx.quant_ops import embed, multiply

    first, second = (matrix_of(name, (outputs, 256)) for name, outputs in zip(names, (150, 47), strict=True))
    ops, (x, rows) = make_ops(mx, backend), activations(mx, 8, 256)
    # Beside one that is there as a whole, and in the draft that reads no lower bits of either.
    weights = [packed(mx, upper(first)), packed(mx, second)]
    together = np.array(multiply(ops, weights, x, state_of(mx, 6)))
    wanted = np.concatenate([product(rows[:6], m.dequantise()) for m in (NestedMatrix(first), second)], axis=1)
    close(together[:, :6].sum(axis=0), wanted, CLOSE)
    alone = np.array(multiply(ops, weights, x[4:5], state_of(mx, 1)))
    assert np.array_equal(alone[:, 0], together[:, 4])
    whole = [packed(mx, first), packed(mx, second)]
    nested = [
        np.array(multiply(ops, each, mx.stack([x[4]] * 2), state_of(mx, 1), nested=True, chosen=True))
        for each in (weights, whole)
    ]
    assert np.array_equal(nested[0], nested[1])
    assert np.array_equal(nested[0][..., :150], alone[..., :150])
    tokens = [149, 0, 77, *range(13)]
    found = np.array(embed(ops, weights[0], state_of(mx, 3, tokens), rows=8))[:3]
    wanted = upper(first).rows(tokens[:3])
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()  # rounded once here, up to twice there


@pytest.mark.parametrize("names", [("affine8-g32-bf16", "q8_0", "16"), slow("q4_k", "q6_k", "q5_1")], ids=" ".join)
def test_cuda_kernels_do_as_metal_does(mx, names):
    from specdec.runtimes.mlx.quant_ops import embed, multiply

    width = 256 if "q4_k" in names else 224  # activations are padded to 256 all the same
    shapes = [(150, width), (128, width), (47, width)]
    bits = from_float32(np.random.default_rng(2).standard_normal((47, width)).astype(np.float32), "float16")
    weights = [
        pack_plain(mx, mx.array(bits), "float16", None) if name == "16" else packed(mx, matrix_of(name, shape))
        for name, shape in zip(names, shapes, strict=True)
    ]
    metal, cuda = make_ops(mx), make_ops(mx, "cuda")
    x, _ = activations(mx, 8, width)
    x[:, 0, 3:50:3] = 0  # not read by a row that is alone and chooses
    found = np.array(multiply(cuda, weights, x, state_of(mx, 8)))
    wanted = np.array(multiply(metal, weights, x, state_of(mx, 8)))
    # More warps share the inputs, so sums meet elsewhere.
    close(found.sum(axis=0), wanted.sum(axis=0), CLOSE)
    alone = mx.stack([x[5]] * 3)
    for nested in (False, True):
        one = np.array(multiply(cuda, weights, alone, state_of(mx, 1), chosen=True, nested=nested))
        if nested:
            wanted = np.array(multiply(metal, weights, alone, state_of(mx, 1), chosen=True, nested=True))
            close(one.sum(axis=0), wanted.sum(axis=0), CLOSE)
        else:
            assert np.array_equal(one[:, 0], found[:, 5])
    tokens = [46, 0, 13, *range(13)]
    for table in weights[1:]:
        rows = [np.array(embed(ops, table, state_of(mx, 3, tokens), rows=8)) for ops in (metal, cuda)]
        assert np.array_equal(rows[0][:3], rows[1][:3])


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_sixteen_rows_and_matrices_in_sixteen_bits(mx, dtype):
    from specdec.runtimes.mlx.quant_ops import multiply

    bits = from_float32(np.random.default_rng(2).standard_normal((140, 160)).astype(np.float32), dtype)
    other, ops = matrix_of("q5_0", (60, 160)), make_ops(mx)  # five groups; activations are padded to 256
    weights = [pack_plain(mx, mx.array(bits), dtype, mx.ones((160, 1))), packed(mx, other)]
    x, rows = activations(mx, 16, 160)
    together = np.array(multiply(ops, weights, x, state_of(mx, 13)))
    wanted = np.concatenate(
        [product(rows[:13], to_float32(bits, dtype)), product(rows[:13], other.dequantise())], axis=1
    )
    close(together[:, :13].sum(axis=0), wanted, CLOSE)
    for row in (2, 11):
        alone = np.array(multiply(ops, weights, x[row : row + 1], state_of(mx, 1)))
        assert np.array_equal(alone[:, 0], together[:, row])


@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_inputs_that_no_row_takes_are_not_read(mx, backend):
    from specdec.runtimes.mlx.quant_ops import multiply

    values = np.random.default_rng(3).standard_normal((140, 160)).astype(np.float32)
    x, rows = activations(mx, 16, 160)
    left_out = np.array([*range(32, 64), *range(100, 160, 3)])
    held = np.array(x)
    held[..., left_out] = 0  # of all rows
    held[3, 0, 7] = held[12, 0, 8] = 0  # of one
    rows = held[:, 0, :160]
    poisoned = from_float32(values, "float16").copy()
    poisoned[:, left_out] = 0x7E00  # not a number: a product with zero shows that it was read
    ops = make_ops(mx, backend)
    weights = [pack_plain(mx, mx.array(poisoned), "float16", None)]
    wanted = product(rows, values.astype(np.float16).astype(np.float32))
    for count in (1, 5, 13):
        given = mx.array(held[None, :count, 0]) if count == 1 else mx.array(held[None, : 8 if count < 9 else 16, 0])
        found = np.array(multiply(ops, weights, given, state_of(mx, count), chosen=True)).sum(axis=0)
        close(found[:count], wanted[:count], CLOSE)


@pytest.mark.parametrize("name", ["q5_1", "q6_k", "affine8-g32-bf16", "float16"])
def test_embeddings(mx, name):
    from specdec.runtimes.mlx.quant_ops import embed

    if name == "float16":
        bits = from_float32(np.random.default_rng(2).standard_normal((140, 160)).astype(np.float32), name)
        table, wanted = pack_plain(mx, mx.array(bits), name, None), to_float32(bits, name)
    else:
        matrix = matrix_of(name, (140, 256))
        table, wanted = packed(mx, matrix), matrix.dequantise()
    tokens = [139, 0, 127, 128, 77, *range(11)]
    found = np.array(embed(make_ops(mx), table, state_of(mx, 5, tokens), rows=8))
    # A weight is rounded once here, and up to twice where it is dequantised.
    assert np.abs(found[:5] - wanted[tokens[:5]]).max() <= 1e-6 * np.abs(wanted).max()
    assert np.isnan(found[5:]).all()


@pytest.mark.slow
def test_kernels_under_sanitizers(monkeypatch, tmp_path):
    mx = use_host(monkeypatch, tmp_path, "address")
    test_every_type_alone_and_in_company(mx, ("q5_0", "q5_1", "q4_k"))
    test_effort_takes_inputs_and_nested_upper_bits(mx, ("q8_0", "q5_k", "q6_k"))
    test_upper_bits_alone_are_what_a_nested_draft_sees_of_the_whole(mx, ("q6_k", "q5_k"), "metal")
    test_cuda_kernels_do_as_metal_does(mx, ("affine8-g32-bf16", "q8_0", "16"))
    test_sixteen_rows_and_matrices_in_sixteen_bits(mx, "bfloat16")


@pytest.fixture
def runtime_of(mx, monkeypatch, tmp_path):
    """The runtime of a model of `MODELS`, on the host, and its source."""
    from specdec.runtimes.mlx.runtime import MlxRuntime

    def make(name: str, load_share: float = 1.0) -> tuple[SyntheticSource, Any]:
        shape, types = MODELS[name]
        config = quantised_config(num_layers=1, intermediate_size=256, **shape)
        source = quantised_source(config, *types, dtype="bfloat16" if "bf16" in types[0] else "float16")
        path = convert(source, tmp_path / name.replace(" ", "-"), quantised="keep")
        return source, MlxRuntime(Store.open(path, verify=False, load_share=load_share))

    return make


@pytest.mark.parametrize("name", ["q4_k with q6_k", pytest.param("affine in part", marks=pytest.mark.slow)])
def test_models_match_the_dequantised_weights_in_any_company(runtime_of, name):
    source, runtime = runtime_of(name)
    ids = [3, 1, 4, 1]
    found = logits_of(runtime, ids, 4)
    # As in test_quantised_runtime.py: the cache is float16.
    assert np.abs(found - float64_logits(source, ids)).max() < 5e-3
    assert np.array_equal(logits_of(runtime, ids, 3), found)
    assert np.array_equal(logits_of(runtime, ids[:1], 1, view="own"), found[:1])


@pytest.mark.parametrize("name", ["q8_0", pytest.param("q4_k with q6_k", marks=pytest.mark.slow)])
def test_models_that_are_loaded_in_part(runtime_of, name):
    _, runtime = runtime_of(name, SHARES[name])
    store, ids = runtime._store, [3, 1, 4, 1]
    parts = [of for of in store.config.matrices() if isinstance(store.exact(of), UpperMatrix)]
    assert parts
    names = store.config.matrices() | store.config.tables()
    weights = {
        of: store.exact(of).dequantise() if of in store.config.matrices() else store.table_rows(of) for of in names
    }
    wanted = DenseTransformer(store.config, weights.__getitem__, store.vector).logits(ids)
    found = logits_of(runtime, ids, 4)
    assert np.abs(found - wanted).max() < 5e-3  # as above
    assert np.array_equal(logits_of(runtime, ids, 3), found)
    assert np.array_equal(logits_of(runtime, ids[:1], 1, view="own"), found[:1])
    nested = logits_of(runtime, ids[:1], 1, view="nested")
    assert np.array_equal(nested, found[:1]) == (name == "q8_0")
    blocks = sum(store.exact(of).nbytes - store.exact(of).scores.nbytes for of in store.config.matrices())
    read = forward_one(runtime, [1], runtime.new_cache(8), effort=EffortSchedule()).bytes_read
    assert blocks <= read <= 1.05 * blocks
    held = sum(matrix.data.nbytes for linear in runtime._transformer.linears for matrix in linear.quant)
    whole = Store.open(store.path, verify=False)
    saved = sum(
        padded(m.outputs) * m.inputs * m.form.hidden // 8 for x in runtime._transformer.linears for m in x.quant
    )
    of_whole = sum(pack_quant(runtime._mx, whole.exact(of), None).data.nbytes for of in store.config.matrices())
    assert of_whole - held == saved > 0
    assert create_runtime("auto", store).info.name == "mlx"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_at_an_effort_in_any_company(runtime_of, name):
    _, runtime = runtime_of(name)
    ids = [3, 1, 4, 1]
    found = logits_of(runtime, ids, 4, effort=0.5)
    assert np.array_equal(logits_of(runtime, ids, 1, effort=0.5), found)
    assert np.array_equal(logits_of(runtime, ids[:2], 1, effort=0.5, view="own"), found[:2])
    assert np.abs(logits_of(runtime, ids, 4) - found).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "load_share", "view", "policy", "effort"),
    [
        ("q4_k with q6_k", 1.0, "nested", "fixed", 1.0),
        ("q8_0", 0.5, "nested", "fixed", 1.0),
        pytest.param("q4_k with q6_k", 0.92, "own,nested", "fixed", 0.5, marks=pytest.mark.slow),
        pytest.param("q4_k with q6_k", 1.0, "own", "goodput", 0.5, marks=pytest.mark.slow),
        pytest.param("affine in part", 1.0, "own,nested", "heuristic:longest=6", 0.5, marks=pytest.mark.slow),
    ],
)
def test_speculation_changes_no_token(runtime_of, name, load_share, view, policy, effort):
    _, runtime = runtime_of(name, load_share)
    drafting = useful({"draft_view": view, "policy": policy, "draft_effort": effort, "draft_len": 2})
    assert_identical(Model(runtime), [3, 1], drafting, max_tokens=4, verify_effort=effort)


def test_what_a_quantised_store_has_on_a_gpu(runtime_of):
    _, runtime = runtime_of("q4_k with q6_k")
    assert tuple(runtime.views()) == ("own", "nested", "int4")
    assert runtime.info.auto_draft[0] in runtime.views()
    with pytest.raises(UnknownNameError, match="view 'bucket' needs 16-bit weights: choose from "):
        runtime.prepare("bucket")
    linears = runtime._transformer.linears
    assert all(linear.weights is None and linear.tiers is None for linear in linears)
    store = runtime._store
    for linear in linears:
        for name, matrix in zip(linear.names, linear.quant, strict=True):
            exact = store.exact(name)
            # 6-bit scales of the K types take a byte each, and outputs are padded to 128.
            assert matrix.data.nbytes <= 1.04 * exact.block_bytes * padded(matrix.outputs) / matrix.outputs
    kv = runtime.new_cache(8)
    everything = forward_one(runtime, [1], kv, effort=EffortSchedule(), logits="last").bytes_read
    blocks = sum(store.exact(name).block_bytes for name in runtime.config.matrices())
    assert blocks <= everything <= 1.05 * blocks


@pytest.mark.slow
def test_int4_drafts_of_quantised_matrices(runtime_of):
    _, runtime = runtime_of("affine in part")
    exact, draft = logits_of(runtime, [1, 2], 1), logits_of(runtime, [1, 2], 1, view="int4")
    assert np.corrcoef(exact.ravel(), draft.ravel())[0, 1] > 0.95
