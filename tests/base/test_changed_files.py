"""Files that somebody cuts off or writes over while they are mapped: one clear error, and no process that dies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from model_files import DATA, gguf_parts, write_gguf
from synthetic import synthetic_source
from text_model import text_source

from specdec.errors import ModelFormatError, StoreError
from specdec.formats import open_source
from specdec.store import Store, convert

CHANGED = "was changed or cut off while it was in use: load the model again"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of a tiny text model that holds its int4 view, so large that its files have several pages."""
    return convert(text_source(hidden_size=64, intermediate_size=256), tmp_path / "store", views=["int4"])


def cut_off(file: Path) -> None:
    """Leave the first bytes of a file."""
    os.truncate(file, 100)


def write_over(file: Path) -> None:
    """Rewrite a file in place, as `cp` does: other bytes, the same size."""
    size = file.stat().st_size
    with file.open("r+b") as out:
        out.truncate(0)
        out.write(b"x" * size)
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize("change", [cut_off, write_over])
def test_nothing_is_read_from_a_file_that_was_changed(store: Path, change: Callable[[Path], None]) -> None:
    opened = Store.open(store)
    change(store / "view-int4.safetensors")
    with pytest.raises(StoreError, match=rf"view-int4\.safetensors {CHANGED}"):
        opened.view("int4", "head")
    assert opened.exact("head").shape[0] == opened.config.vocab_size  # the other file is as it was
    change(store / "exact.safetensors")
    for read in (
        lambda: opened.exact("head"),
        lambda: opened.vector("final_norm"),
        lambda: opened.table_rows("embed", [0]) if "embed" in opened.config.tables() else opened.exact("head"),
        opened.verify,
        opened.release_pages,
        opened.check_files,
    ):
        with pytest.raises(StoreError, match=rf"exact\.safetensors {CHANGED}"):
            read()


def test_a_store_that_is_replaced_goes_on(store: Path) -> None:
    opened = Store.open(store)
    before = opened.exact("head").dequantise()
    convert(synthetic_source(seed=9), store, overwrite=True)
    assert (opened.exact("head").dequantise() == before).all()
    opened.check_files()


# Loads a store, changes a file of it, and asks for something that reads that file. Runs in a process of its own, which
# a signal would end.
LATE = """
import os, sys
import specdec
model = specdec.load(sys.argv[1], runtime=sys.argv[2])
os.truncate(os.path.join(sys.argv[1], sys.argv[3]), 100)
options = {"max_tokens": 4, sys.argv[4]: float(sys.argv[5]) if sys.argv[5][0].isdigit() else sys.argv[5]}
try:
    specdec.generate(model, "hello", **options)
except specdec.SpecdecError as error:
    print(type(error).__name__, error)
print(len(specdec.generate(model, "hello", max_tokens=4, speculate=False).tokens) if sys.argv[2] == "native" else 4)
"""


@pytest.mark.parametrize(
    ("runtime", "file", "option", "value"),
    [
        ("native", "view-int4", "draft_view", "int4"),
        ("native", "exact", "verify_effort", "0.5"),
        ("native", "exact", "draft_view", "bucket"),
        ("reference", "exact", "verify_effort", "0.5"),
        ("reference", "view-int4", "draft_view", "int4"),
    ],
)
def test_a_loaded_model_whose_files_are_cut_off(store: Path, runtime: str, file: str, option: str, value: str) -> None:
    pytest.importorskip("specdec.kernels.cpu._native" if runtime == "native" else "mlx.core")
    command = [sys.executable, "-c", LATE, str(store), runtime, f"{file}.safetensors", option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    said, tokens = done.stdout.splitlines()
    assert said == f"StoreError {store / file}.safetensors {CHANGED}"
    assert tokens == "4"  # plain decoding continues with what was loaded


def test_a_model_file_that_is_cut_off_while_it_is_converted(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", *gguf_parts("tiny-llama"))
    shutil.copytree(DATA / "tiny-llama", tmp_path / "folder")
    for path, file in (
        (tmp_path / "model.gguf", tmp_path / "model.gguf"),
        (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"),
    ):
        source = open_source(path)
        os.truncate(file, 4)
        with pytest.raises(ModelFormatError, match=rf"{file.name} was cut off while it was read"):
            convert(source, tmp_path / "out")
        source.close()
    assert not (tmp_path / "out").exists()
