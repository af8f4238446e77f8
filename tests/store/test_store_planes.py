"""Stores of version 3: codes in planes, the rest of them last in the file; and version 2, which still loads."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import quantised_config, quantised_source
from test_partial_load import least_share, quantised_store
from test_store_damage import edit, flip, refused

from specdec.errors import StoreError
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one
from specdec.runtimes.choose import best_runtime, create_runtime
from specdec.store import Store, convert
from specdec.store.description import DESCRIPTION_FILE, PLANES_VERSION
from specdec.store.partial import rest_worth
from specdec.store.plan import EXACT_FILE
from specdec.store.tensorfile import FILLER, TensorFile, read_layout
from specdec.weights.quantised import QuantisedMatrix, UpperMatrix, plane_type, quantised_type, quantised_types

RUNTIMES = ["reference"] + ["native"] * (best_runtime() == "native")
MIXED = ("q8_0", "q4_k", "q5_k", "16", "q6_k")


def blocks_store(path: Path, *types: str) -> Path:
    """A store as version 2 has it: every matrix in its source's blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specdec.store.conversion.plane_matrices", lambda *_: [])
        return quantised_store(path, *types)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised_store(tmp_path_factory.mktemp("stores") / "mixed", *MIXED)


@pytest.fixture
def copy(mixed: Path, tmp_path: Path) -> Path:
    """A copy of `mixed` to break."""
    return Path(shutil.copytree(mixed, tmp_path / "copy"))


@pytest.mark.parametrize("kind", quantised_types())
def test_only_codes_of_more_than_four_bits_lie_in_planes(tmp_path: Path, kind: str) -> None:
    store, source = Store.open(quantised_store(tmp_path / "s", kind)), quantised_source(quantised_config(), kind)
    source.dtype = store.dtype
    longer = quantised_type(kind).bits > 4
    assert store.description.version == (PLANES_VERSION if longer else 2)
    assert set(store.description.rests) == (set(store.config.matrices()) if longer else set())
    for name in store.config.matrices():
        wanted, found = source.quantised(name, kind).arrays, store.exact(name)
        assert isinstance(found, QuantisedMatrix)
        wanted = plane_type(kind).split(wanted) if longer else wanted
        assert found.arrays.keys() == wanted.keys()
        assert all(np.array_equal(found.arrays[part], array) for part, array in wanted.items())
        # Slices are of the file, nothing is copied.
        assert not any(array.flags.owndata for array in found.arrays.values())


def test_stores_of_version_2_keep_blocks_and_are_read(tmp_path: Path) -> None:
    path = blocks_store(tmp_path / "s", *MIXED)
    store, source = Store.open(path), quantised_source(quantised_config(), *MIXED)
    values = json.loads((path / DESCRIPTION_FILE).read_text())
    assert (values["version"], "rests" in values) == (2, False)
    names = list(store.config.matrices())
    assert [name for name in read_layout(path / EXACT_FILE).tensors if not name.startswith(FILLER)] == [
        *store.config.vectors(),
        *(f"{name}.scores" for name in names),
        *(f"{name}.blocks" for name in names if name in store.types),
        *(f"{name}.tier{k}.{part}" for k in range(4) for name in names if name not in store.types
          for part in ("values", "mask")[: 1 + (k < 3)]),
    ]  # fmt: skip
    for name in names:
        if name in store.types:
            wanted, found = source.quantised(name, store.types[name]), store.exact(name)
            assert isinstance(found, QuantisedMatrix)
            assert np.array_equal(found.blocks, wanted.blocks)


def test_first_parts_come_before_the_rest(mixed: Path) -> None:
    store, layout = Store.open(mixed), read_layout(mixed / EXACT_FILE)
    names = [name for name in layout.tensors if not name.startswith(FILLER)]
    rests = [f"{name}.rest" for name in store.config.matrices() if name in store.description.rests]
    assert len(rests) > 5
    assert names[-len(rests) :] == rests
    parts = store.part_bytes()
    # Of 34 bytes of a block 2 are its scale, and 16 the rest of codes.
    assert parts["q8_0.rest"] * 18 == parts["q8_0"] * 16
    assert "q4_k.rest" not in parts
    assert sum(parts.values()) == layout.nbytes


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_model_at_its_first_parts_is_a_prefix_of_the_file(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    path = quantised_store(tmp_path / "s", "q8_0", "q5_1", "q6_k")
    layout, store = read_layout(path / EXACT_FILE), Store.open(path)
    weights = {name: outputs * inputs for name, (outputs, inputs) in store.config.matrices().items()}
    bits = sum(quantised_type(store.types[name]).bits * count for name, count in weights.items())
    share = 4 * sum(weights.values()) / bits
    wanted = logits(runtime, Store.open(path, load_share=share))
    first = min(placed.offset for name, placed in layout.tensors.items() if name.endswith(".rest"))
    assert first < 0.75 * layout.nbytes
    with (path / EXACT_FILE).open("r+b") as file:
        file.truncate(first)
        file.truncate(layout.nbytes)  # of the size that the header says, zeros where the rests were
    part = Store.open(path, load_share=share)
    assert all(isinstance(part.exact(name), UpperMatrix) for name in part.config.matrices())
    assert np.array_equal(logits(runtime, part), wanted)
    with pytest.raises(StoreError, match=r"'.*\.rest' .* was altered"):
        Store.open(path)


def logits(runtime: str, store: Store, view: str = "exact", effort: float = 1.0) -> np.ndarray:
    made = create_runtime(runtime, store)
    return forward_one(made, [3, 1, 4, 1, 5], made.new_cache(8), effort=EffortSchedule(effort), view=view).logits


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "types", [MIXED, ("q5_0", "q8_0", "q5_1"), ("affine8-g32", "affine4-g64"), ("affine8-g128-bf16", "16")]
)
def test_planes_and_blocks_give_the_same_bits(tmp_path: Path, runtime: str, types: tuple[str, ...]) -> None:
    """Whole and in part, exact and in drafts."""
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    paths = quantised_store(tmp_path / "planes", *types), blocks_store(tmp_path / "blocks", *types)
    assert [Store.open(path).description.version for path in paths] == [3, 2]
    least = least_share(paths[0])
    for share in (1.0, (1 + least) / 2, least):
        planes, blocks = (Store.open(path, load_share=share) for path in paths)
        assert planes.loaded_share == blocks.loaded_share
        for name in planes.config.matrices():
            assert type(planes.exact(name)) is type(blocks.exact(name))
        for view, effort in (("exact", 1.0), ("exact", 0.4), ("own", 0.4), ("nested", 0.6)):
            assert np.array_equal(logits(runtime, planes, view, effort), logits(runtime, blocks, view, effort))


def test_what_the_rest_is_worth_is_the_same_in_blocks(mixed: Path, tmp_path: Path) -> None:
    blocks, described = Store.open(blocks_store(tmp_path / "s", *MIXED)), Store.open(mixed).description.rests
    for name, worth in described.items():
        matrix = blocks.exact(name)
        assert isinstance(matrix, QuantisedMatrix)
        assert worth == rest_worth(matrix) > 0


@pytest.mark.parametrize("share", [0.85, 0.95])
def test_what_is_left_out_is_not_looked_at(copy: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither read nor verified, nor is its map handed out: a changed bit goes unnoticed, but not on a full load."""
    seen: set[str] = set()
    for method in ("array", "checksum"):
        own = getattr(TensorFile, method)
        monkeypatch.setattr(TensorFile, method, lambda self, name, own=own: seen.add(name) or own(self, name))
    part = Store.open(copy, load_share=share)
    made = [create_runtime(runtime, part) for runtime in RUNTIMES if runtime == "native"]
    left_out = {f"{name}.rest" for name in part.description.rests if isinstance(part.exact(name), UpperMatrix)}
    layout = read_layout(copy / EXACT_FILE)
    loaded = {name for name in layout.tensors if name.endswith(".rest")} - left_out
    assert left_out
    assert loaded
    assert seen.isdisjoint(left_out)
    assert seen >= loaded
    del made, part
    for name in left_out:
        flip(copy / EXACT_FILE, layout.tensors[name].offset + 5)
    Store.open(copy, load_share=share)
    for name in left_out:
        flip(copy / EXACT_FILE, layout.tensors[name].offset + 5)
    Store.open(copy)
    for name in sorted(left_out)[:3]:
        flip(copy / EXACT_FILE, layout.tensors[name].offset)
        refused(copy, rf"tensor '{re.escape(name)}' in .* was altered")
        flip(copy / EXACT_FILE, layout.tensors[name].offset)
    # What is loaded is verified all the same.
    for name in (*sorted(loaded)[:2], *(other.removesuffix("rest") + "upper" for other in sorted(left_out)[:2])):
        flip(copy / EXACT_FILE, layout.tensors[name].offset)
        with pytest.raises(StoreError, match=rf"tensor '{re.escape(name)}' in .* was altered"):
            Store.open(copy, load_share=share)
        flip(copy / EXACT_FILE, layout.tensors[name].offset)


def test_bytes_that_are_loaded_are_those_of_the_tensors(mixed: Path) -> None:
    layout = read_layout(mixed / EXACT_FILE)
    for share in (1.0, 0.9, 0.75):
        store = Store.open(mixed, load_share=share)
        for name in store.types:
            matrix = store.exact(name)
            mapped = sum(
                placed.spec.nbytes
                for tensor, placed in layout.tensors.items()
                if tensor.rpartition(".")[0] == name and not (tensor.endswith("rest") and type(matrix) is UpperMatrix)
            )
            assert matrix.nbytes == mapped
            assert matrix.bytes_read(np.ones(matrix.shape[1], np.uint8)) == mapped - matrix.scores.nbytes


@pytest.mark.skipif("native" not in RUNTIMES, reason="the native runtime is not built")
@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("layers.0.attn.q", lambda a: a.pop("rest"), "needs an array 'rest'"),
        ("layers.0.attn.q", lambda a: a.pop("heads"), "needs an array 'heads'"),
        ("layers.0.attn.q", lambda a: a.update(blocks=a["heads"]), "an array too many"),
        ("layers.0.attn.q", lambda a: a.update(upper=a["upper"][:, 1:].copy()), "'upper' has the wrong shape"),
        ("layers.0.attn.q", lambda a: a.update(upper=a["upper"][1:]), "'upper' has the wrong shape"),
        ("layers.0.attn.q", lambda a: a.update(rest=a["rest"].view(np.int8)), "'rest' has the wrong type"),
        ("layers.0.attn.q", lambda a: a.update(rest=a["rest"][:, ::-1]), "'rest' has the wrong type"),
        ("layers.0.attn.k", lambda a: a.update(upper=a["blocks"]), "four bits do not lie in planes"),
        ("layers.0.attn.k", dict.clear, "needs an array 'blocks'"),
    ],
)
def test_the_native_module_checks_what_it_is_given(
    mixed: Path, name: str, change: Callable[[dict], object], match: str
) -> None:
    store = Store.open(mixed)
    model: Any = create_runtime("native", store)._model  # type: ignore[attr-defined]
    matrix, index = store.exact(name), list(store.config.matrices()).index(name)
    assert isinstance(matrix, QuantisedMatrix)
    arrays = dict(matrix.arrays)
    assert model.load_quantised(index, arrays, 0, matrix.shape[0]) == ""
    change(arrays)
    with pytest.raises(ValueError, match=match):
        model.load_quantised(index, arrays, 0, matrix.shape[0])


def test_every_flipped_bit_is_found(copy: Path) -> None:
    random, size = np.random.default_rng(7), (copy / EXACT_FILE).stat().st_size
    for offset in {0, 9, size - 1, *random.integers(0, size, 25).tolist()}:
        bit = int(random.integers(0, 8))
        flip(copy / EXACT_FILE, offset, bit)
        with pytest.raises(StoreError):
            Store.open(copy)
        flip(copy / EXACT_FILE, offset, bit)
    Store.open(copy)


@pytest.mark.parametrize("name", ["layers.0.attn.q.heads", "layers.1.attn.v.upper", "head.rest"])
def test_scales_codes_and_rests_that_were_altered_are_named(copy: Path, name: str) -> None:
    flip(copy / EXACT_FILE, read_layout(copy / EXACT_FILE).tensors[name].offset)
    refused(copy, rf"tensor '{re.escape(name)}' in .*exact.safetensors was altered")


def test_truncated_files_are_refused_however_much_is_loaded(copy: Path) -> None:
    whole = (copy / EXACT_FILE).stat().st_size
    with (copy / EXACT_FILE).open("r+b") as file:
        file.truncate(whole - 1)
    for share in (1.0, 0.75):
        with pytest.raises(StoreError, match=rf"has {whole - 1} bytes instead of {whole}"):
            Store.open(copy, load_share=share)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v["rests"].update({"layers.0.attn.k": 0.1}), r"'layers.0.attn.k': q4_k has codes of 4 bits"),
        (lambda v: v["rests"].update({"layers.0.attn.o": 0.1}), r"'layers.0.attn.o' has no rest of codes"),
        (lambda v: v["rests"].update({"layers.9.attn.q": 0.1}), r"'layers.9.attn.q' has no rest of codes"),
        (lambda v: v["rests"].update({"layers.0.attn.q": float("nan")}), r"'layers.0.attn.q' has no rest .* worth nan"),
        (lambda v: v["rests"].update({"layers.0.attn.q": -0.5}), r"'layers.0.attn.q' has no rest of codes .* -0.5"),
        (lambda v: v["rests"].update({"layers.0.attn.q": "much"}), r"store.json is damaged"),
        (lambda v: v["rests"].pop("layers.0.attn.q"), r"tensor 'layers.0.attn.q.blocks' .* missing where the model"),
        (lambda v: v.pop("rests"), r"store.json is damaged"),
        (lambda v: v.update(rests={}), r"store.json is damaged"),
        (lambda v: v.update(version=2), r"store.json is damaged"),
        (lambda v: v["types"].update({"layers.0.attn.q": "q5_0"}), r"tensor 'layers.0.attn.q.rest' .* model needs U8"),
    ],
)  # fmt: skip
def test_descriptions_that_do_not_fit_the_planes(copy: Path, change: Callable[[dict], None], match: str) -> None:
    edit(copy, change)
    refused(copy, match, verify=False)


def test_conversion_does_not_depend_on_slices(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.weights.quantised._CHUNK_WEIGHTS", 700)
    assert Store.open(quantised_store(tmp_path / "s", *MIXED)).checksum == Store.open(mixed).checksum


def test_conversion_holds_a_few_matrices(tmp_path: Path) -> None:
    peaks, sizes = [], []
    for layers in (2, 10):
        source = quantised_source(quantised_config(num_layers=layers), "q8_0", "q6_k")
        tracemalloc.start()
        target = convert(source, tmp_path / str(layers), quantised="keep", threads=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append((target / EXACT_FILE).stat().st_size)
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 10
