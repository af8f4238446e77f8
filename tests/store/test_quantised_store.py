"""Stores that keep a source's quantised blocks: GGUF files and MLX checkpoints, what is read back, what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize
from model_files import DATA, gguf_parts, tiny_weights, write_gguf
from quantised_checkpoint import mlx_checkpoint
from synthetic import quantised_config, quantised_source, synthetic_source
from synthetic import tiny_config as synthetic_config

from specdec.errors import InvalidArgumentError, ModelFormatError, StoreError
from specdec.formats import open_source
from specdec.store import BucketLayout, Store, convert
from specdec.store.description import DESCRIPTION_FILE, PLANES_VERSION
from specdec.store.inspect import inspect_store
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import from_float32
from specdec.weights.int4 import Int4View
from specdec.weights.quantised import QuantisedMatrix, QuantisedTable, plane_type, quantised_types

TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16")


def quantised_gguf(path: Path, name: str = "tiny-llama", *, merged: bool = False) -> dict[str, tuple[str, np.ndarray]]:
    """A GGUF file of a tiny checkpoint, its matrices in every type in turn. Returns type and weights by tensor name."""
    metadata, tensors = gguf_parts(name, merged=merged)
    stored: dict[str, Any] = {}
    weights: dict[str, tuple[str, np.ndarray]] = {}
    for number, (tensor, values) in enumerate(tensors.items()):
        kind = TYPES[number % len(TYPES)] if values.ndim > 1 and values.shape[-1] % 32 == 0 else "F32"
        if kind in ("F32", "F16"):
            stored[tensor] = values.astype({"F32": np.float32, "F16": np.float16}[kind])
            weights[tensor] = kind, values.astype(np.float32)
        else:
            blocks = quantize(values.astype(np.float32), GGMLQuantizationType[kind])
            stored[tensor] = blocks, GGMLQuantizationType[kind]
            weights[tensor] = kind, dequantize(blocks, GGMLQuantizationType[kind])
    write_gguf(path, metadata, stored)
    return weights


def kept(source_path: Path, target: Path, quantised: str | None = "keep", **options: Any) -> Store:
    source = open_source(source_path)
    convert(source, target, quantised=quantised, selection="tiers", **options)
    source.close()
    return Store.open(target)


def same_blocks(matrix: QuantisedMatrix, blocks: np.ndarray) -> bool:
    """Whether a matrix in planes has these blocks (`test_planes` shows that planes tell blocks apart)."""
    planes = plane_type(matrix.type).split({"blocks": blocks})
    return all(np.array_equal(matrix.arrays[part], array) for part, array in planes.items())


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    parts = rows.reshape(heads, -1, 2, rows.shape[1])
    return parts.swapaxes(1, 2).reshape(rows.shape)


def test_blocks_of_a_gguf_file_come_back_bit_for_bit(tmp_path: Path) -> None:
    weights = quantised_gguf(tmp_path / "m.gguf")
    store = kept(tmp_path / "m.gguf", tmp_path / "s", views=("int4",))
    seen = set()
    for ours, theirs in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
        for layer in range(store.config.num_layers):
            kind, wanted = weights[f"blk.{layer}.{theirs}.weight"]
            heads = {"q": store.config.num_heads, "k": store.config.num_kv_heads}.get(ours)
            wanted = half_split(wanted, heads) if heads else wanted
            matrix = store.exact(f"layers.{layer}.attn.{ours}")
            assert np.array_equal(matrix.dequantise(), wanted)
            assert isinstance(matrix, BucketedMatrix if kind == "F16" else QuantisedMatrix)
            seen.add(matrix.type if isinstance(matrix, QuantisedMatrix) else kind)
    assert len(seen) >= 4
    kind, wanted = weights["token_embd.weight"]
    table = store.table("embed")
    assert isinstance(table, QuantisedTable)
    assert table.type == kind.lower()
    assert np.array_equal(table.dequantise(), wanted)
    assert np.array_equal(store.table_rows("embed", [5, 0, 5]), wanted[[5, 0, 5]])
    assert store.quantised
    assert store.description.version == PLANES_VERSION


def test_what_is_not_quantised_stays_as_it_was(tmp_path: Path) -> None:
    quantised_gguf(tmp_path / "m.gguf")
    store, plain = kept(tmp_path / "m.gguf", tmp_path / "s"), kept(tmp_path / "m.gguf", tmp_path / "p", None)
    assert not plain.quantised
    assert plain.description.version == 1
    for name in store.config.matrices():
        ours, theirs = store.exact(name), plain.bucketed(name)
        if isinstance(ours, BucketedMatrix):
            assert np.array_equal(ours.dense_bits(), theirs.dense_bits())
        else:
            assert np.array_equal(from_float32(ours.dequantise(), "float16"), theirs.dense_bits())
            with pytest.raises(InvalidArgumentError, match=f"{name}.* is in {ours.type} blocks"):
                store.bucketed(name)
    for name in store.config.vectors():
        assert np.array_equal(store.vector(name), plain.vector(name))


@pytest.mark.parametrize("merged", [False, True])
def test_experts_are_kept(tmp_path: Path, merged: bool) -> None:
    weights = quantised_gguf(tmp_path / "m.gguf", "tiny-mixtral", merged=merged)
    store = kept(tmp_path / "m.gguf", tmp_path / "s")
    shape = store.config.matrices()["layers.0.mlp.experts.0.up"]
    for expert in range(store.config.num_experts):
        where = "blk.0.ffn_up_exps.weight" if merged else f"blk.0.ffn_up.{expert}.weight"
        wanted = weights[where][1][expert] if merged else weights[where][1]
        found = store.exact(f"layers.0.mlp.experts.{expert}.up")
        assert found.shape == shape
        assert np.array_equal(found.dequantise(), wanted)
    router = "layers.0.mlp.router"
    assert np.array_equal(store.table_rows(router), weights["blk.0.ffn_gate_inp.weight"][1])


def test_the_store_is_as_large_as_the_file(tmp_path: Path) -> None:
    config = quantised_config(vocab_size=2000)
    source = quantised_source(config, "q4_k", "q6_k", "q8_0", "q4_0")
    convert(source, tmp_path / "s", quantised="keep")
    store = Store.open(tmp_path / "s")
    blocks = sum(table.block_bytes for table in (source.quantised(*item) for item in source.types.items()))
    files = sum(record.nbytes for record in store.description.files.values())
    assert blocks < files < 1.1 * blocks


@pytest.mark.parametrize("kind", quantised_types())
def test_every_type_survives_with_a_stored_view(tmp_path: Path, kind: str) -> None:
    source = quantised_source(quantised_config(tie_embeddings=False), kind)
    convert(source, tmp_path / "s", quantised="keep", views=("int4",))
    store = Store.open(tmp_path / "s")
    assert store.types == source.types
    for name in [*list(store.config.matrices())[:8], "head"]:
        wanted, found = source.quantised(name, kind), store.exact(name)
        assert np.array_equal(found.dequantise(), wanted.dequantise())
        built = Int4View().build(found)
        assert all(
            np.array_equal(store.view("int4", name)[part], array) for part, array in Int4View().arrays(built).items()
        )
    report = inspect_store(tmp_path / "s")
    assert set(report.types) == {kind}
    assert kind in report.to_text()
    assert report.matrices["head"].type == kind
    assert sum(report.part_bytes.values()) == report.file_bytes["exact.safetensors"]


def test_8_bits_on_request_follow_the_gguf_package(tmp_path: Path) -> None:
    convert(synthetic_source(synthetic_config()), tmp_path / "s", quantised="q8_0")
    store, source = Store.open(tmp_path / "s"), synthetic_source(synthetic_config())
    matrix = store.exact("layers.0.attn.q")
    weights = source.matrix("layers.0.attn.q").view(np.float16).astype(np.float32)
    assert isinstance(matrix, QuantisedMatrix)
    assert same_blocks(matrix, quantize(weights, GGMLQuantizationType.Q8_0))
    # Rows of 56 are not whole blocks: they stay in 16 bits.
    assert isinstance(store.exact("layers.0.mlp.down"), BucketedMatrix)


def test_8_bits_of_a_file_come_from_its_own_values(tmp_path: Path) -> None:
    weights = quantised_gguf(tmp_path / "m.gguf")
    store = kept(tmp_path / "m.gguf", tmp_path / "s", "q8_0")
    for layer in range(store.config.num_layers):
        matrix = store.exact(f"layers.{layer}.attn.v")
        assert isinstance(matrix, QuantisedMatrix)
        wanted = quantize(weights[f"blk.{layer}.attn_v.weight"][1], GGMLQuantizationType.Q8_0)
        assert same_blocks(matrix, wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 64)])
def test_an_mlx_checkpoint_is_kept(tmp_path: Path, bits: int, group: int, dtype: str) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    override = "model.layers.1.self_attn.o_proj"
    plan = {
        "group_size": group,
        "bits": bits,
        "mode": "affine",
        override: {"group_size": 32, "bits": 8},
        "model.layers.0.mlp.gate_proj": False,
    }
    # Rows of 160 are not a multiple of 64: mlx-lm would leave such a layer alone.
    plan |= {f"model.layers.{layer}.mlp.down_proj": False for layer in range(3)}
    folder = mlx_checkpoint(tmp_path / "m", "tiny-llama", plan, dtype=dtype)
    store = kept(folder, tmp_path / "s")
    suffix = "-bf16" if dtype == "bfloat16" else ""
    assert store.dtype == dtype
    assert store.types["layers.0.attn.q"] == f"affine{bits}-g{group}{suffix}"
    assert store.types["layers.1.attn.o"] == f"affine8-g32{suffix}"
    assert "layers.0.mlp.gate" not in store.types
    kind = {"float16": mx.float16, "bfloat16": mx.bfloat16}[dtype]
    for ours, theirs in (("layers.0.attn.q", "model.layers.0.self_attn.q_proj"), ("layers.1.attn.o", override)):
        how = {name: plan.get(theirs, plan)[name] for name in ("group_size", "bits")}
        with mx.stream(mx.cpu):
            words, *factors = mx.quantize(mx.array(tiny_weights("tiny-llama")[f"{theirs}.weight"]).astype(kind), **how)
            wanted = np.array(mx.dequantize(words, *(factor.astype(mx.float32) for factor in factors), **how))
        assert np.array_equal(store.exact(ours).dequantise(), wanted)
    assert isinstance(store.table("embed"), QuantisedTable)


def test_an_mlx_mixture_is_kept_and_can_be_made_16_bit(tmp_path: Path) -> None:
    folder = mlx_checkpoint(tmp_path / "m", "tiny-mixtral", {"group_size": 32, "bits": 8})
    store, plain = kept(folder, tmp_path / "s"), kept(folder, tmp_path / "p", None)
    assert store.types["layers.0.mlp.router"] == "affine8-g32"
    for name in store.config.matrices():
        assert store.types[name] == "affine8-g32"
        assert np.array_equal(
            from_float32(store.exact(name).dequantise(), "float16"), plain.bucketed(name).dense_bits()
        )
    original = open_source(DATA / "tiny-mixtral")
    for expert in range(store.config.num_experts):
        name = f"layers.2.mlp.experts.{expert}.down"
        off = np.abs(store.exact(name).dequantise() - original.matrix(name).view(np.float16).astype(np.float32))
        assert off.max() < 0.01  # a step of 8 bits over weights that span about 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bits": 7},
            "'model.layers.0.self_attn.q_proj.weight' has 7 bits in groups of 64: this version reads 2,",
        ),
        ({"bits": 3}, "does not fit scales"),
        ({"group_size": 16}, "bits in groups of 16"),
        ({"mode": "nvfp4"}, "is quantised as nvfp4: only affine and mxfp4"),
        ({"group_size": 32}, "does not fit scales"),
        ({"bits": "four"}, "bits must be a whole number"),
    ],
)
def test_wrong_mlx_descriptions_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    plan = {"group_size": 64, "bits": 4} | {f"model.layers.{layer}.mlp.down_proj": False for layer in range(3)}
    folder = mlx_checkpoint(tmp_path / "m", "tiny-llama", plan)
    config = json.loads((folder / "config.json").read_text())
    own = {"model.layers.0.self_attn.q_proj": {"group_size": 64, "bits": 4, "mode": "affine"} | change}
    (folder / "config.json").write_text(json.dumps(config | {"quantization": plan | own}))
    with pytest.raises(ModelFormatError, match=message):
        open_source(folder)


@pytest.mark.parametrize("quantised", ["keep", "q8_0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_scale_is_refused_by_tensor_name(tmp_path: Path, bad: float, quantised: str) -> None:
    metadata, tensors = gguf_parts("tiny-llama")
    blocks = quantize(tensors["blk.1.ffn_up.weight"].astype(np.float32), GGMLQuantizationType.Q4_1)
    blocks[3, 2:4] = np.array([bad], np.float16).view(np.uint8)
    tensors["blk.1.ffn_up.weight"] = blocks, GGMLQuantizationType.Q4_1
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(ModelFormatError, match=r"m.gguf: tensor 'blk.1.ffn_up.weight' holds"):
        kept(path, tmp_path / "s", quantised)
    assert not list(tmp_path.glob("*s*/")), "nothing is half-written"


def test_a_type_that_a_store_does_not_keep_is_refused_by_name(tmp_path: Path) -> None:
    config = quantised_config()
    source = quantised_source(config, "q8_0")
    source.types["layers.1.attn.v"] = "q3_k"
    with pytest.raises(ModelFormatError, match=r"'layers.1.attn.v' is q3_k, which a store does not keep .* to f16"):
        convert(source, tmp_path / "s", quantised="keep")
    with pytest.raises(InvalidArgumentError, match="must be 'keep' or 'q8_0'"):
        convert(source, tmp_path / "s", quantised="q5_0")
    with pytest.raises(InvalidArgumentError, match="dither adds noise to 16-bit weights"):
        convert(source, tmp_path / "s", quantised="keep", dither=1)
    assert not (tmp_path / "s").exists()


def test_damaged_quantised_stores_are_refused(tmp_path: Path) -> None:
    convert(quantised_source(quantised_config(), "q4_k", "16"), tmp_path / "s", quantised="keep")
    text = (tmp_path / "s" / DESCRIPTION_FILE).read_text()
    (tmp_path / "s" / DESCRIPTION_FILE).write_text(text.replace('"q4_k"', '"q4_0"', 1))
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path / "s")
    (tmp_path / "s" / DESCRIPTION_FILE).write_text(text)
    path = tmp_path / "s" / "exact.safetensors"
    raw = bytearray(path.read_bytes())
    where = raw.rindex(bytes(np.asarray(Store.open(tmp_path / "s").exact("head").arrays["blocks"][5]).tobytes()))
    raw[where] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"'head.blocks' .* was altered"):
        Store.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("layers.1.mlp.up", "q3_k", r"store.json .* tensor 'layers.1.mlp.up': unknown quantised type 'q3_k'"),
        ("layers.1.mlp.up", "q5_0", r"tensor 'layers.1.mlp.up.rest' .* where the model needs U8 \(512, 32\)"),
        ("layers.1.mlp.up", "q4_0", r"store.json .* tensor 'layers.1.mlp.up': q4_0 has codes of 4 bits"),
        ("layers.9.mlp.up", "q8_0", "store.json is damaged"),
    ],
)
def test_stores_of_other_types_are_refused_by_tensor_name(tmp_path: Path, name: str, kind: str, message: str) -> None:
    """The description's own checksum is right: such a store would come from another program or version."""
    path = convert(quantised_source(quantised_config(), "q8_0"), tmp_path / "s", quantised="keep") / DESCRIPTION_FILE
    values = json.loads(path.read_text())
    del values["checksum"]
    values["types"][name] = kind
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps(values | {"checksum": hashlib.sha256(canonical).hexdigest()}))
    with pytest.raises(StoreError, match=message):
        Store.open(path.parent)


def test_stores_without_blocks_are_what_older_versions_read(tmp_path: Path) -> None:
    convert(synthetic_source(), tmp_path / "s", layout=BucketLayout(), selection="tiers")
    values = json.loads((tmp_path / "s" / DESCRIPTION_FILE).read_text())
    assert values["version"] == 1
    assert "types" not in values
