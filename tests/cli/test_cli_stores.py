"""`specdec convert`, `inspect`, `pull` and `doctor`, and the model names that every command takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from gguf import GGMLQuantizationType, quantize
from model_files import DATA, gguf_parts, write_gguf

import specdec
from specdec import cache, catalogue, download
from specdec.cli import doctor
from specdec.errors import DownloadError, RuntimeUnavailableError
from specdec.store import BucketLayout, Store, conversion
from specdec.store.inspect import inspect_store

TINY = DATA / "tiny-llama"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A GGUF file of a tiny model without a tokenizer."""
    return write_gguf(tmp_path / "tiny.gguf", *gguf_parts("tiny-llama"))


def test_convert_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "store"
    ran = run(capsys, "convert", TINY, "-o", target, "--views", "int4,bucket", "--bucket-size", 32, "--tiers", "4,4,24")
    assert (ran.code, ran.out) == (0, f"{target}\n")
    assert "converting tiny-llama" in ran.err
    store = Store.open(target)
    assert store.layout == BucketLayout(32, (4, 4, 24))
    assert store.views == ("int4",)
    assert store.dithered is None

    said = json.loads(run(capsys, "inspect", target, "--json").out)
    assert said == json.loads(json.dumps(inspect_store(target).to_dict()))
    text = run(capsys, "inspect", target).out
    for part in (str(target), store.checksum, "4 + 4 + 24", "int4", "down", "float16"):
        assert part in text


def test_convert_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "store"
    assert run(capsys, "convert", TINY, "-o", target, "--dtype", "bf16").code == 0
    assert Store.open(target).dtype == "bfloat16"
    assert run(capsys, "convert", TINY, "-o", target, "--overwrite", "--dither", "3", "--bucket-size", "32").code == 0
    store = Store.open(target)
    assert (store.dtype, store.dithered, store.layout) == ("float16", 3, BucketLayout(32, (8, 8, 8, 8)))
    assert "seed 3" in run(capsys, "inspect", target).out
    assert run(capsys, "convert", TINY, "-o", target, "--overwrite", "--tiers", "2,2,4").code == 0
    assert Store.open(target).layout == BucketLayout(8, (2, 2, 4))


@pytest.fixture
def q8_gguf(tmp_path: Path) -> Path:
    """The tiny model with its attention in Q8_0."""
    metadata, tensors = gguf_parts("tiny-llama")
    for name, values in tensors.items():
        if ".attn_" in name and values.ndim == 2:
            blocks = quantize(values.astype(np.float32), GGMLQuantizationType.Q8_0)
            tensors[name] = blocks, GGMLQuantizationType.Q8_0
    return write_gguf(tmp_path / "q8.gguf", metadata, tensors)


@pytest.mark.parametrize(
    ("options", "dtype", "types"),
    [
        (("--to", "keep"), "float16", 12),
        (("--to", "f16"), "float16", 0),
        (("--to", "bf16"), "bfloat16", 0),
        (("--to", "q8"), "float16", 23),
        (("--dtype", "f16"), "float16", 0),
        (("--dither", "1"), "float16", 0),
    ],
)
def test_what_becomes_of_quantised_weights(
    options: tuple[str, ...], dtype: str, types: int, q8_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "store"
    assert run(capsys, "convert", q8_gguf, "-o", target, *options).code == 0
    store = Store.open(target)
    assert (store.dtype, len(store.types)) == (dtype, types)
    assert set(store.types.values()) <= {"q8_0"}
    text = run(capsys, "inspect", target).out
    assert ("q8_0" in text) == bool(types)


def test_where_nobody_says_what_becomes_of_them(
    q8_gguf: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for keep in (False, True):
        for module in (catalogue, conversion):
            monkeypatch.setattr(module, "KEEP_BY_DEFAULT", keep)
        assert run(capsys, "convert", q8_gguf, "-o", tmp_path / f"s{keep}").code == 0
        assert Store.open(tmp_path / f"s{keep}").quantised == keep
        found[keep] = catalogue.resolve_model(q8_gguf)
        assert Store.open(found[keep]).quantised == keep
    assert found[True] != found[False]


def test_types_that_a_store_does_not_keep_become_16_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "KEEP_BY_DEFAULT", True)
    metadata, tensors = gguf_parts("tiny-llama")
    values = tensors["blk.0.attn_v.weight"]
    blocks = np.zeros((values.shape[0], values.shape[1] // 32 * 18), np.uint8)
    tensors["blk.0.attn_v.weight"] = blocks, GGMLQuantizationType.IQ4_NL
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    ran = run(capsys, "convert", path, "-o", tmp_path / "s")
    assert ran.code == 0
    assert "does not keep weights of type iq4_nl: all become 16-bit" in ran.err
    assert not Store.open(tmp_path / "s").quantised
    ran = run(capsys, "convert", path, "-o", tmp_path / "t", "--to", "keep")
    assert ran.code == 2
    assert "tensor 'layers.0.attn.v' is iq4_nl, which a store does not keep" in ran.err
    assert not (tmp_path / "t").exists()


def test_a_model_file_is_converted_once(
    gguf: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = catalogue.resolve_model(gguf)
    assert first.parent == home / "stores"
    assert first.name.startswith("tiny-")
    assert "converting tiny.gguf" in capsys.readouterr().err
    written = (first / "store.json").stat().st_mtime_ns
    assert catalogue.resolve_model(str(gguf)) == first
    assert (first / "store.json").stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""

    metadata, tensors = gguf_parts("tiny-llama")
    write_gguf(gguf, metadata | {"general.name": "another"}, tensors)
    assert catalogue.resolve_model(gguf) != first


def test_links_to_a_model_share_its_store(
    gguf: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.gguf").symlink_to(gguf)
    (tmp_path / "blob").symlink_to(gguf)  # as in the cache of a hub, where names without endings hold the files
    first = catalogue.resolve_model(tmp_path / "other.gguf")
    written = (first / "store.json").stat().st_ino
    capsys.readouterr()
    for name in (gguf, tmp_path / "blob", tmp_path / "other.gguf", gguf):
        assert catalogue.resolve_model(name) == first
    assert capsys.readouterr().err == ""
    assert (first / "store.json").stat().st_ino == written

    again = shutil.copytree(first, first.with_name(f"another-{first.name.rpartition('-')[2]}"))
    cache.replace_older(first, str(gguf.resolve()))  # as where two processes made it under two names at once
    assert again.exists()

    metadata, tensors = gguf_parts("tiny-llama")
    write_gguf(gguf, metadata | {"general.name": "another"}, tensors)
    second = catalogue.resolve_model(tmp_path / "other.gguf")
    assert [one.name for one in (home / "stores").iterdir() if not one.name.startswith(".")] == [second.name]


def test_folders_and_stores_as_models(home: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue.resolve_model(text_model) == text_model
    assert not home.exists()
    ids = specdec.generate(specdec.load(TINY), [1, 2, 3], max_tokens=4, draft_effort=0.9).tokens
    assert (
        ids
        == specdec.generate(
            specdec.load(catalogue.resolve_model(TINY)), [1, 2, 3], max_tokens=4, speculate=False
        ).tokens
    )
    monkeypatch.chdir(TINY.parent)
    assert catalogue.resolve_model("tiny-llama") == catalogue.resolve_model(TINY)


@pytest.fixture
def shelf(gguf: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A catalogue of one tiny model and its dithered twin, fetched from a file; returns a count of the fetches."""
    fetches = 0

    def fetch(name: str, target: Path, *, sha256: str, progress: object, **_: object) -> None:
        nonlocal fetches
        if not target.exists():
            fetches += 1
            shutil.copy(gguf, target)
        assert download.file_sha256(target) == sha256

    entry = catalogue.CatalogueEntry(
        name="tiny", title="Tiny", licence="CC0-1.0", size_bytes=gguf.stat().st_size, sha256=download.file_sha256(gguf),
        packages=("tiny==1",), hub=None, source="tiny", dither=None,
    )  # fmt: skip
    twin = replace(entry, name="tiny-dithered", dither=1)
    monkeypatch.setattr(catalogue, "entries", lambda: {"tiny": entry, "tiny-dithered": twin})
    monkeypatch.setattr(download, "fetch", fetch)
    return lambda: fetches


def test_pull(shelf: Callable[[], int], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tiny-dithered" in run(capsys, "pull", "--list").out
    ran = run(capsys, "pull", "tiny")
    store = Path(ran.out.rstrip("\n"))
    assert ran.code == 0
    assert store.parent == home / "stores"
    assert Store.open(store).dithered is None
    assert run(capsys, "pull", "tiny").out == ran.out
    assert (home / "models" / "tiny.gguf").exists()
    listed = run(capsys, "pull", "--list").out.splitlines()
    assert listed[0].endswith("CC0-1.0: here")
    assert not listed[1].endswith("here")

    twin = Path(run(capsys, "pull", "tiny-dithered").out.rstrip("\n"))
    assert Store.open(twin).dithered == 1
    assert Store.open(twin).checksum != Store.open(store).checksum
    assert shelf() == 1


def test_pull_again_repairs_a_store(shelf: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    store = catalogue.pull("tiny")
    checksum = Store.open(store).checksum
    (store / "exact.safetensors").write_bytes(b"damaged")
    assert "convert the model again" in run(capsys, "inspect", "tiny").error
    assert run(capsys, "pull", "tiny", "--force").code == 0
    assert Store.open(store).checksum == checksum


def test_a_name_of_the_catalogue_is_a_model(
    shelf: Callable[[], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert specdec.load("tiny").config == specdec.load(TINY).config
    assert "converting tiny.gguf" in capsys.readouterr().err
    assert run(capsys, "convert", "tiny", "-o", tmp_path / "mine", "--dither", "7").code == 0
    assert Store.open(tmp_path / "mine").dithered == 7
    assert shelf() == 1


def test_a_fetch_that_fails_leaves_nothing(
    shelf: Callable[[], int], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DownloadError("cannot fetch tiny: the network is away")

    monkeypatch.setattr(download, "fetch", fail)
    assert run(capsys, "pull", "tiny").error == "cannot fetch tiny: the network is away"
    assert not (home / "stores").exists()


def test_the_catalogue_is_sound() -> None:
    entries = catalogue.entries()
    assert next(iter(entries)) == catalogue.DEFAULT_MODEL
    for name, entry in entries.items():
        assert len(entry.sha256) == 64
        assert int(entry.sha256, 16)
        assert entry.packages
        assert all(package.count("==") == 1 for package in entry.packages)
        assert (entry.dither is None) == (entry.source == name)
        assert entries[entry.source].sha256 == entry.sha256
    assert len({catalogue.store_path(name) for name in entries}) == len(entries)


def test_doctor(home: Path, text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "doctor", "--json").out)
    assert found["version"] != "unknown"
    assert found["runtimes"]["reference"] == {"available": True, "reason": None}
    assert found["auto"] == specdec.load(text_model).runtime.info.name
    assert found["dependencies"]["numpy"] == np.__version__
    assert found["cpu"]["usable_threads"] >= 1
    assert found["mlx"]["default_device"]
    assert found["cache"]["path"] == str(home)
    assert found["cache"]["free_bytes"] > 0
    assert found["cache"]["models"] == []
    text = run(capsys, "doctor").out
    for part in (found["version"], "reference: available", np.__version__, str(home), "none pulled yet"):
        assert part in text


def test_doctor_says_what_a_load_would_say(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("specdec.kernels.cpu._native")
    monkeypatch.setenv("SPECDEC_CPU", "nosuch")
    assert doctor.examine()["runtimes"]["native"]["reason"].startswith("SPECDEC_CPU is 'nosuch', which this machine")


def test_doctor_says_when_the_cache_cannot_be_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.examine()["cache"]["problem"] is None
    home.mkdir(exist_ok=True)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert f"{home} cannot be written: models that are" in "\n".join(doctor._lines(doctor.examine()))
    file = home / "file"
    file.touch()
    for there in (file, file / "folder"):
        monkeypatch.setenv("SPECDEC_HOME", str(there))
        assert doctor.examine()["cache"]["problem"] == f"{file} is not a folder: set SPECDEC_HOME to one"


def test_doctor_while_files_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(exist_ok=True)
    (home / "kept").write_bytes(b"123")
    (home / "gone").symlink_to("removed by another process")
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # as it was a moment ago
    assert doctor._cache()["used_bytes"] == 3 + (home / "gone").lstat().st_size


def test_doctor_says_why_a_runtime_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise RuntimeUnavailableError(f"install the backend of {name}")

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    found = doctor.examine()
    reason = "install the backend of specdec.runtimes.reference.runtime"
    assert found["runtimes"]["reference"] == {"available": False, "reason": reason}
    assert f"reference: {reason}" in "\n".join(doctor._lines(found))


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--version")
    assert (ran.code, ran.out.split()[0]) == (0, "specdec")
    for command in ("generate", "convert", "inspect", "pull", "doctor"):
        assert command in run(capsys, "--help").out
        ran = run(capsys, command, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert f"usage: specdec {command}" in ran.out
