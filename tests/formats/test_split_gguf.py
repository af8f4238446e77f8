"""GGUF models in several files, as splitting tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import gguf_parts, write_gguf
from tokenizer_files import bpe_metadata, saved

from specdec.errors import ModelFormatError
from specdec.formats import open_source
from specdec.formats.gguf_file import GGUFFile


def write_split(folder: Path, count: int, *, changes: dict[int, dict[str, Any]] | None = None) -> list[Path]:
    """A tiny model in `count` files; `changes` replaces metadata of single ones."""
    metadata, tensors = gguf_parts("tiny-qwen2")
    tensors["token_embd.weight"] = np.zeros((512, 64), np.float16)
    names, paths = list(tensors), []
    for number in range(count):
        part = {"general.architecture": "qwen2", "split.no": number, "split.count": count}
        part |= {"split.tensors.count": len(names)}
        part |= (metadata | bpe_metadata() if number == 0 else {}) | (changes or {}).get(number, {})
        path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
        paths.append(write_gguf(path, part, {name: tensors[name] for name in names[number::count]}))
    return paths


def whole(folder: Path) -> Path:
    metadata, tensors = gguf_parts("tiny-qwen2")
    tensors["token_embd.weight"] = np.zeros((512, 64), np.float16)
    return write_gguf(folder / "whole.gguf", metadata | bpe_metadata(), tensors)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("given", [0, -1])
def test_parts_are_the_whole_model(tmp_path: Path, count: int, given: int) -> None:
    paths, expected = write_split(tmp_path, count), open_source(whole(tmp_path))
    source = open_source(paths[given])
    assert source.config == expected.config
    assert source.tokenizer_files == expected.tokenizer_files
    for name in (*source.config.matrices(), *source.config.tables()):
        np.testing.assert_array_equal(source.matrix(name), expected.matrix(name))
    for name in source.config.vectors():
        np.testing.assert_array_equal(source.vector(name), expected.vector(name))
    assert saved(source.tokenizer_files, tmp_path / "tokenizer").encode("the dog")
    source.close()


def test_a_missing_part(tmp_path: Path) -> None:
    paths = write_split(tmp_path, 3)
    paths[1].unlink()
    with pytest.raises(
        ModelFormatError, match=r"is one of 3 parts, and m-00002-of-00003\.gguf is missing from its folder"
    ):
        open_source(paths[0])
    paths[0].unlink()
    with pytest.raises(
        ModelFormatError,
        match="says that it is part 3 of 3, and the first one is missing from its folder: download all parts",
    ):
        open_source(paths[2])


def test_a_missing_part_without_tensors(tmp_path: Path) -> None:
    metadata, tensors = gguf_parts("tiny-qwen2")
    split = {"split.no": 0, "split.count": 2, "split.tensors.count": len(tensors)}
    path = write_gguf(tmp_path / "m-00001-of-00002.gguf", metadata | split, tensors)
    with pytest.warns(UserWarning, match=r"m-00002-of-00002\.gguf is missing, but no tensor is"):
        assert open_source(path).config.num_layers == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: {"split.no": 2}}, r"m-00002-of-00003\.gguf says that it is another part than 2 of 3"),
        ({1: {"split.count": 4}}, "says that it is another part than 2 of 3"),
        ({0: {"split.no": 1}}, "says that it is part 2 of 3, which its name does not say"),
        ({0: {"split.count": 2**31}}, "says that it is part 1 of 2147483648"),
        ({0: {"split.count": 4}}, r"give it its name back, NAME-00001-of-00004\.gguf"),
        ({0: {"split.count": "three"}}, "its parts are not whole numbers"),
        ({0: {"split.tensors.count": 99}}, "and its parts hold .* tensors, and 99 belong to the model"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path: Path, changes: dict[int, dict[str, Any]], message: str) -> None:
    paths = write_split(tmp_path, 3, changes=changes)
    with pytest.raises(ModelFormatError, match=message):
        open_source(paths[0])


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    paths = write_split(tmp_path, 2)
    for number, path in enumerate(paths):
        file = GGUFFile(path, part=True)
        metadata = dict(file.metadata)
        file.close()
        _, tensors = gguf_parts("tiny-qwen2")
        write_gguf(path, metadata | {"split.no": number}, {"output_norm.weight": tensors["output_norm.weight"]})
    with pytest.raises(ModelFormatError, match=r"'output_norm\.weight' is in both"):
        open_source(paths[0])


def test_a_renamed_first_part(tmp_path: Path) -> None:
    path = write_split(tmp_path, 2)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFormatError, match=r"give it its name back, NAME-00001-of-00002\.gguf"):
        open_source(path)
