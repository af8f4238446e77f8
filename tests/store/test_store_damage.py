"""Every way a store can be broken gets one clear error, and no byte can change unnoticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import synthetic_source

from specdec.errors import StoreError
from specdec.store import FORMAT_VERSION, Store, convert
from specdec.store.description import _checksum
from specdec.store.tensorfile import read_layout


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = synthetic_source()
    source.tokenizer_files = {"tokenizer.json": b'{"model": {}}'}
    return convert(source, tmp_path_factory.mktemp("pristine") / "store", views=["int4"])


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def edit(store: Path, change: Callable[[dict], None], *, seal: bool = True) -> None:
    """Change store.json, and its checksum with it when `seal`."""
    path = store / "store.json"
    values = json.loads(path.read_text())
    change(values)
    if seal:
        values["checksum"] = _checksum({key: value for key, value in values.items() if key != "checksum"})
    path.write_text(json.dumps(values))


def refused(store: Path, match: str, *, verify: bool = True) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        Store.open(store, verify=verify)
    assert "\n" not in str(caught.value)


def test_the_copy_is_whole(store: Path) -> None:
    Store.open(store)


def test_what_is_no_store(tmp_path: Path, store: Path) -> None:
    refused(tmp_path / "nowhere", "there is no store at")
    refused(store / "exact.safetensors", "is a file, and a store is a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is not a store \\(no store.json\\)")
    (tmp_path / "foreign").mkdir()
    save_file({"model.embed_tokens.weight": np.zeros((2, 2), np.float16)}, tmp_path / "foreign" / "model.safetensors")
    refused(tmp_path / "foreign", "is not a store \\(no store.json\\)")
    (tmp_path / "foreign" / "store.json").write_text('{"format": "something else"}')
    refused(tmp_path / "foreign", "does not describe a specdec store")


def test_unfinished(store: Path) -> None:
    (store / "UNFINISHED").touch()
    refused(store, "unfinished conversion")
    (store / "UNFINISHED").unlink()
    (store / "store.json").unlink()
    refused(store, "no store.json")


def test_another_safetensors_file_in_place_of_ours(store: Path) -> None:
    save_file({"head.tier0.values": np.zeros((2, 2), np.float16)}, store / "exact.safetensors")
    refused(store, r"exact\.safetensors has \d+ bytes instead of", verify=False)
    edit(store, lambda v: v["files"]["exact.safetensors"].update(bytes=(store / "exact.safetensors").stat().st_size))
    refused(store, r"exact\.safetensors was altered, or the file belongs to another store", verify=False)


@pytest.mark.parametrize("name", ["exact.safetensors", "view-int4.safetensors", "tokenizer/tokenizer.json"])
def test_missing_truncated_and_longer_files(store: Path, name: str) -> None:
    path = store / name
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1, len(whole) + 1):
        path.write_bytes((whole + b"\0")[:length])
        refused(store, f"{path.name} (has {length} bytes instead of {len(whole)}|is truncated)", verify=False)
    path.unlink()
    refused(store, f"{path.name} is missing", verify=False)


def test_truncated_description(store: Path) -> None:
    path = store / "store.json"
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        refused(store, "store.json is damaged", verify=False)
    path.write_bytes(b"\xff\xfe" + whole)
    refused(store, "store.json is damaged", verify=False)
    path.write_bytes(b"[1, 2]")
    refused(store, "does not describe a specdec store", verify=False)


def test_every_flipped_bit_is_found(pristine: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(pristine, tmp_path / "store"))
    rng = np.random.default_rng(0)
    for name in ("exact.safetensors", "view-int4.safetensors", "tokenizer/tokenizer.json", "store.json"):
        path = store / name
        size = path.stat().st_size
        for offset in {0, 1, size - 2, *rng.integers(0, size, 25).tolist()}:
            bit = int(rng.integers(0, 8))
            flip(path, offset, bit)
            with pytest.raises(StoreError):
                Store.open(store)
            flip(path, offset, bit)
    Store.open(store)


def test_a_flipped_weight_names_its_tensor(store: Path) -> None:
    path = store / "exact.safetensors"
    layout = read_layout(path)
    for name in ("layers.1.mlp.down.tier2.values", "layers.0.attn.q.tier0.mask", "final_norm", "padding.0"):
        flip(path, layout.tensors[name].offset + 3)
        refused(store, f"tensor '{name}' in .* was altered")
        flip(path, layout.tensors[name].offset + 3)
    flip(path, layout.tensors["head.tier3.values"].offset)
    Store.open(store, verify=False)  # as documented: contents are read only when verifying
    refused(store, r"'head\.tier3\.values'")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e30])
def test_scores_that_cannot_be(store: Path, value: float) -> None:
    path = store / "exact.safetensors"
    offset = read_layout(path).tensors["layers.1.attn.v.scores"].offset
    with path.open("r+b") as file:
        file.seek(offset + 4)
        file.write(np.float32(value).tobytes())
    refused(store, r"'layers\.1\.attn\.v\.scores' in .* is not a table of scores", verify=False)


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 1000])
def test_a_newer_version_says_so(store: Path, version: int, seal: bool) -> None:
    edit(store, lambda v: v.update(version=version, news={"unknown": True}), seal=seal)
    refused(store, f"written by a newer version of specdec .store format {version}.* upgrade", verify=False)


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5])
def test_a_version_that_never_was(store: Path, version: object) -> None:
    edit(store, lambda v: v.update(version=version))
    refused(store, "store.json is damaged", verify=False)


def test_an_edited_description_is_noticed(store: Path) -> None:
    edit(store, lambda v: v["config"].update(rope_theta=5.0), seal=False)
    refused(store, "store.json is damaged", verify=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v["config"].update(hidden_size=64), "tensor .* where the model needs"),
        (lambda v: v["config"].update(num_layers=3), "tensor .* is missing where the model needs"),
        (lambda v: v["config"].update(num_layers=1), "where the model needs missing"),
        (lambda v: v["config"].update(architecture=""), "does not describe a model: the model family must have a name"),
        (lambda v: v.update(version=4), "does not describe a model: model description does not fit this version"),
        (lambda v: v["config"].update(surprise=1), "does not describe a model"),
        (lambda v: v["config"].pop("rope_theta"), "does not describe a model"),
        (lambda v: v["layout"].update(tier_sizes=[8, 8]), "tensor .* where the model needs"),
        (lambda v: v["layout"].update(tier_sizes=[8, 9]), "does not describe a model: tier_sizes"),
        (lambda v: v.update(dtype="bfloat16"), "is F16 .* where the model needs BF16"),
        (lambda v: v.update(dtype="float64"), "does not describe a model: dtype"),
        (lambda v: v.update(views=[]), "lists the files"),
        (lambda v: v.update(views=["int4", "other"]), "lists the files"),
        (lambda v: v.pop("layout"), "store.json is damaged"),
        (lambda v: v["files"].update({"../../etc/passwd": {"bytes": 1, "sha256": "", "tensors": {}}}), "no file named"),
        (lambda v: v["files"]["exact.safetensors"]["tensors"].pop("head.scores"), "belongs to another store"),
    ],
)
def test_a_description_that_does_not_fit_the_files(store: Path, change: Callable[[dict], None], match: str) -> None:
    edit(store, change)
    refused(store, match, verify=False)


def test_a_view_that_is_not_installed_does_not_matter(store: Path) -> None:
    (store / "view-int4.safetensors").rename(store / "view-later.safetensors")

    def rename(values: dict) -> None:
        values["views"] = ["later"]
        values["files"]["view-later.safetensors"] = values["files"].pop("view-int4.safetensors")

    edit(store, rename)
    opened = Store.open(store)
    assert opened.views == ("later",)
    assert set(opened.view("later", "head")) == {"q", "scale", "scores"}
