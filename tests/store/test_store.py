"""A store holds the model bit for bit, lies as docs/store.md says, and comes out of a conversion that streams."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SyntheticSource, synthetic_source, tiny_config

from specdec.errors import InvalidArgumentError, ModelFormatError, StoreError, UnknownNameError
from specdec.model.architecture import ModelConfig
from specdec.store import BucketLayout, Store, convert
from specdec.store.plan import exact_tensors
from specdec.store.tensorfile import ALIGNMENT, FILLER, lay_out, read_layout
from specdec.weights.base import TensorSpec
from specdec.weights.int4 import Int4Matrix, Int4View

MIXTURE = tiny_config(
    tie_embeddings=False, qkv_bias=True, qk_norm=True, num_experts=3, experts_per_token=2, hidden_size=33
)
LAYOUTS = [BucketLayout(), BucketLayout(64, (8,) * 8), BucketLayout(16, (2, 2, 4, 8)), BucketLayout(8, (8,))]


def assert_holds(store: Store, source: SyntheticSource) -> None:
    """Every tensor of the store equals that of the source, bit for bit."""
    config = source.config
    assert store.config == config
    for name in config.matrices():
        np.testing.assert_array_equal(store.exact(name).dense_bits(), source.matrix(name), err_msg=name)
    for name in config.tables():
        np.testing.assert_array_equal(store.table(name), source.matrix(name), err_msg=name)
    for name in config.vectors():
        np.testing.assert_array_equal(store.vector(name), source.vector(name), err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("config", [tiny_config(), MIXTURE], ids=["tied", "mixture"])
def test_round_trip(tmp_path: Path, config: ModelConfig, dtype: str, layout: BucketLayout) -> None:
    source = synthetic_source(config, dtype=dtype)
    source.tokenizer_files = {"tokenizer.json": b"{}", "tokenizer_meta.json": b'{"kind": "bpe"}'}
    target = convert(source, tmp_path / "store", layout=layout, views=["bucket", "int4"])
    store = Store.open(target)
    assert_holds(store, source)
    assert (store.layout, store.dtype, store.dithered, store.views) == (layout, dtype, None, ("int4",))
    assert store.source == {"kind": "synthetic", "seed": "0"}
    assert {p.name: p.read_bytes() for p in store.tokenizer_path.iterdir()} == source.tokenizer_files
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.fixed_dictionaries(
        {
            "vocab_size": st.integers(1, 70),
            "hidden_size": st.integers(1, 70),
            "intermediate_size": st.integers(1, 70),
            "num_layers": st.integers(1, 2),
        }
    ),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_round_trip_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int], layout: BucketLayout, seed: int
) -> None:
    source = synthetic_source(tiny_config(**sizes), seed)
    store = Store.open(convert(source, tmp_path_factory.mktemp("any") / "s", layout=layout, views=["int4"]))
    assert_holds(store, source)


def test_stored_and_built_views_are_equal(tmp_path: Path) -> None:
    source = synthetic_source(MIXTURE, 3)
    with_view = Store.open(convert(source, tmp_path / "with", views=["int4"]))
    without = Store.open(convert(source, tmp_path / "without"))
    for name in MIXTURE.matrices():
        stored, built = with_view.draft("int4", name), without.draft("int4", name)
        assert isinstance(stored, Int4Matrix)
        for part, array in Int4View().arrays(built).items():
            np.testing.assert_array_equal(Int4View().arrays(stored)[part], array)
        np.testing.assert_array_equal(without.draft("bucket", name).dequantise(), with_view.exact(name).dequantise())
    assert with_view.view("int4", "head")["scale"].dtype == np.float16
    with pytest.raises(UnknownNameError, match="unknown stored view 'int4'"):
        without.view("int4", "head")
    with pytest.raises(UnknownNameError, match="unknown view 'int5': choose from bucket, bucket8, int4"):
        without.draft("int5", "head")


def test_slicing_and_threads_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = synthetic_source(tiny_config(hidden_size=200, head_dim=6))
    whole = Store.open(convert(source, tmp_path / "a", views=["int4"], dither=5, threads=1))
    monkeypatch.setattr("specdec.store.conversion._SLICE_WEIGHTS", 1)
    sliced = Store.open(convert(source, tmp_path / "b", views=["int4"], dither=5, threads=3))
    assert sliced.checksum == whole.checksum


def test_reports_progress_and_reads_each_tensor_once(tmp_path: Path) -> None:
    source, calls = synthetic_source(MIXTURE), []
    convert(source, tmp_path / "store", views=["int4"], progress=lambda done, total: calls.append((done, total)))
    weights = sum(outputs * inputs for outputs, inputs in MIXTURE.matrices().values())
    assert calls[0] == (0, weights)
    assert calls[-1] == (weights, weights)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert sorted(source.reads) == sorted([*MIXTURE.matrices(), *MIXTURE.tables()])


def test_other_readers_read_it(tmp_path: Path) -> None:
    source = synthetic_source(MIXTURE)
    target = convert(source, tmp_path / "store", views=["int4"])
    store = Store.open(target)
    with safetensors.safe_open(target / "exact.safetensors", framework="numpy") as file:
        names = list(file.keys())
        assert {name for name in names if not name.startswith(FILLER)} == set(
            exact_tensors(MIXTURE, store.layout, dtype="float16", types={}, planes=())
        )
        values = file.get_tensor("layers.1.attn.k.tier2.values")
        np.testing.assert_array_equal(values.view(np.uint16), store.exact("layers.1.attn.k").values[2])
        np.testing.assert_array_equal(file.get_tensor("final_norm"), source.vector("final_norm"))
    with safetensors.safe_open(target / "view-int4.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("head.q"), store.view("int4", "head")["q"])


def test_bfloat16_is_declared_as_such(tmp_path: Path) -> None:
    target = convert(synthetic_source(dtype="bfloat16"), tmp_path / "store")
    specs = {name: placed.spec for name, placed in read_layout(target / "exact.safetensors").tensors.items()}
    assert specs["head.tier0.values"] == TensorSpec("BF16", (32, 3, 4))
    assert specs["head.tier0.mask"] == TensorSpec("U8", (32, 3, 2))
    assert specs["head.scores"] == TensorSpec("F32", (32, 4))


def test_tiers_lie_one_after_another_and_aligned(tmp_path: Path) -> None:
    target = convert(synthetic_source(MIXTURE), tmp_path / "store", views=["int4"])
    for name in ("exact.safetensors", "view-int4.safetensors"):
        layout = read_layout(target / name)
        assert all(p.offset % ALIGNMENT == 0 for n, p in layout.tensors.items() if not n.startswith(FILLER))
    spans: dict[str, tuple[int, int]] = {}
    for name, placed in read_layout(target / "exact.safetensors").tensors.items():
        group = next((part for part in name.split(".") if part.startswith("tier")), "ahead")
        if not name.startswith(FILLER):
            begin, end = spans.get(group, (placed.offset, 0))
            spans[group] = (min(begin, placed.offset), max(end, placed.offset + placed.spec.nbytes))
    order = [spans[group] for group in ("ahead", "tier0", "tier1", "tier2", "tier3")]
    assert all(end <= begin for (_, end), (begin, _) in pairwise(order))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), max_size=8))
def test_any_list_of_tensors_is_laid_out_without_gaps(lengths: list[int]) -> None:
    layout = lay_out({f"t{i}": TensorSpec("U8", (length,)) for i, length in enumerate(lengths)})
    data = layout.header + b"\0" * (layout.nbytes - len(layout.header))
    assert set(dict(safetensors.deserialize(data))) == set(layout.tensors)


def test_size_within_the_promise(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=192, intermediate_size=512, vocab_size=2048, head_dim=48)
    target = convert(synthetic_source(config), tmp_path / "store", views=["int4"])
    dense = 2 * sum(outputs * inputs for outputs, inputs in config.matrices().values())
    # 3 mask bits for 16 are 0.1875; scores and the header make up the rest.
    assert (target / "exact.safetensors").stat().st_size < 1.25 * dense
    assert (target / "view-int4.safetensors").stat().st_size < 0.30 * dense


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks, sizes = [], []
    for layers in (2, 10):
        config = tiny_config(num_layers=layers, hidden_size=192, intermediate_size=768, head_dim=48)
        source = synthetic_source(config)
        tracemalloc.start()
        target = convert(source, tmp_path / str(layers), views=["int4"], threads=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(sum(path.stat().st_size for path in target.iterdir()))
    # Holding the model would add all of the difference. How many matrices are in flight at the worst moment is a matter
    # of luck between threads: a third leaves room for that, and for the longer table of tensors.
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 3


def test_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    store = Store.open(convert(synthetic_source(), tmp_path / "store"))
    matrix = store.exact("head")
    for array in (*matrix.values, *matrix.masks, matrix.scores, store.vector("final_norm")):
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array.reshape(-1)[0] = 0


def test_arrays_outlive_the_store(tmp_path: Path) -> None:
    source = synthetic_source()
    matrix = Store.open(convert(source, tmp_path / "store")).exact("head")
    np.testing.assert_array_equal(matrix.dense_bits(), source.matrix("head"))


def test_names_that_the_model_does_not_have(tmp_path: Path) -> None:
    store = Store.open(convert(synthetic_source(), tmp_path / "store"))
    for read in (store.exact, store.table, store.vector):
        with pytest.raises(InvalidArgumentError, match="this model has no"):
            read("layers.9.attn.q")


def test_the_checksum_stands_for_the_weights(tmp_path: Path) -> None:
    first, again = (Store.open(convert(synthetic_source(), tmp_path / name)) for name in ("a", "b"))
    other = Store.open(convert(synthetic_source(seed=1), tmp_path / "c"))
    assert first.checksum == again.checksum != other.checksum
    assert first.checksum == json.loads((tmp_path / "a" / "store.json").read_text())["checksum"]


class BadSource(SyntheticSource):
    """A source that hands out something wrong for one tensor."""

    def __init__(self, config: ModelConfig, name: str, wrong: str) -> None:
        super().__init__(config)
        self.name, self.wrong = name, wrong

    def _spoil(self, name: str, array: np.ndarray) -> np.ndarray:
        if name != self.name:
            return array
        if self.wrong == "shape":
            return array[:-1]
        if self.wrong == "dtype":
            return array.astype(np.float64)
        array.reshape(-1)[-1] = {"nan": 0x7E00, "inf": 0xFC00}[self.wrong] if array.dtype == np.uint16 else np.nan
        return array

    def matrix(self, name: str) -> np.ndarray:
        return self._spoil(name, super().matrix(name))

    def vector(self, name: str) -> np.ndarray:
        return self._spoil(name, super().vector(name))


@pytest.mark.parametrize("wrong", ["nan", "inf", "shape", "dtype"])
@pytest.mark.parametrize("name", ["layers.1.mlp.down", "head", "embed", "layers.1.mlp_norm"])
def test_a_bad_tensor_is_named_and_nothing_is_left(tmp_path: Path, name: str, wrong: str) -> None:
    source = BadSource(tiny_config(tie_embeddings=False), name, wrong)
    with pytest.raises(ModelFormatError, match=f"tensor '{name}'"):
        convert(source, tmp_path / "store")
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_file_cannot_leave_the_folder(tmp_path: Path) -> None:
    source = synthetic_source()
    source.tokenizer_files = {"../evil": b""}
    with pytest.raises(ModelFormatError, match=r"no file named 'tokenizer/\.\./evil'"):
        convert(source, tmp_path / "store")
    assert not any(tmp_path.iterdir())


def test_unknown_views_and_seeds_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="choose from bucket, bucket8, int4"):
        convert(synthetic_source(), tmp_path / "store", views=["int4", "int5"])
    with pytest.raises(InvalidArgumentError, match="dither seed"):
        convert(synthetic_source(), tmp_path / "store", dither=-1)
    with pytest.raises(StoreError, match="does not exist"):
        convert(synthetic_source(), tmp_path / "no" / "store")
    assert not any(tmp_path.iterdir())
