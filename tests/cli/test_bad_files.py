"""Stores and other projects' model files that cannot be used: one clear sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import run, says, tree
from gguf import GGMLQuantizationType
from model_files import DATA, gguf_parts, safetensors_bytes, tiny_config, tiny_weights, write_gguf, write_huggingface
from text_model import text_store, tokenizer_files

# --- stores ---------------------------------------------------------------------------------------------------------


def truncate(store: Path) -> None:
    with (store / "exact.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 100)


def flip_a_bit_of_the_weights(store: Path) -> None:
    path = store / "exact.safetensors"
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 4
    path.write_bytes(content)


def flip_a_bit_of_the_description(store: Path) -> None:
    path = store / "store.json"
    path.write_text(path.read_text().replace('"max_context": 128', '"max_context": 129'))


def make_newer(store: Path) -> None:
    path = store / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


def put_foreign_weights(store: Path) -> None:
    shutil.copy(DATA / "tiny-llama" / "model.safetensors", store / "exact.safetensors")


def put_foreign_weights_of_the_same_size(store: Path) -> None:
    path = store / "exact.safetensors"
    size = path.stat().st_size
    header = {"other": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    empty = len(safetensors_bytes(header, b""))
    header["other"] = {"dtype": "U8", "shape": [size - empty], "data_offsets": [0, size - empty]}
    while (found := len(content := safetensors_bytes(header, bytes(header["other"]["shape"][0])))) != size:
        header["other"]["shape"][0] -= found - size
        header["other"]["data_offsets"][1] -= found - size
    path.write_bytes(content)


def lose_a_file(store: Path) -> None:
    (store / "tokenizer" / "tokenizer.json").unlink()


def damage_the_tokenizer(store: Path) -> None:
    path = store / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"{", b"[", 1))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, r"exact.safetensors has \d+ bytes instead of \d+: .*convert the model again"),
        (flip_a_bit_of_the_weights, "tensor .* was altered: .*convert the model again"),
        (flip_a_bit_of_the_description, "store.json is damaged: convert the model again"),
        (make_newer, r"newer version of specdec \(store format 99.*upgrade specdec"),
        (put_foreign_weights, "exact.safetensors has .*convert the model again"),
        (put_foreign_weights_of_the_same_size, "exact.safetensors.*another store.*convert the model again"),
        (lose_a_file, "tokenizer.json is missing: .*convert the model again"),
        (damage_the_tokenizer, "tokenizer.json was altered: .*convert the model again"),
    ],
)
def test_damaged_stores(
    damage: Callable[[Path], None],
    told: str,
    text_model_copy: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(text_model_copy)
    before = tree(text_model_copy.parent)
    says(run(capsys, "generate", "--model", text_model_copy, "--prompt", "x"), told)
    says(run(capsys, "inspect", text_model_copy), told)
    assert tree(text_model_copy.parent) == before


def test_no_store_there(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(run(capsys, "inspect", tmp_path / "nothing"), "there is no store at .*nothing")
    says(run(capsys, "inspect", tmp_path), "is not a store .no store.json.: make one with .specdec convert")
    says(run(capsys, "inspect", "smollm2-135m"), "has not been pulled: run `specdec pull smollm2-135m`")
    assert not home.exists()


def test_the_chat_template_is_unreadable(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = text_store(tmp_path / "store", files=tokenizer_files(chat_template="{% for message in %}"))
    says(run(capsys, "generate", "--model", store, "--prompt", "x"), "chat template cannot be read: .*")


def test_the_chat_template_refuses_the_messages(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{{ raise_exception('no system messages, please') }}"
    store = text_store(tmp_path / "store", files=tokenizer_files(chat_template=template))
    says(run(capsys, "generate", "--model", store, "--prompt", "x"), "no system messages, please")


def test_a_model_without_a_tokenizer(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = text_store(tmp_path / "store", files={})
    says(
        run(capsys, "generate", "--model", store, "--prompt", "x"),
        "this model has no tokenizer, so it reads no text: the lib",
    )


# --- other projects' files ------------------------------------------------------------------------------------------


def unknown_quant_type(folder: Path) -> Path:
    """A GGUF file with a tensor of a type that no program knows."""
    metadata, tensors = gguf_parts("tiny-llama")
    path = write_gguf(folder / "model.gguf", metadata, tensors)
    name = b"blk.0.ffn_up.weight"
    content = bytearray(path.read_bytes())
    # Behind the name: the number of dimensions, the dimensions, and then the type.
    type_at = content.index(name) + len(name) + 4 + 2 * 8
    assert content[type_at : type_at + 4] == int(GGMLQuantizationType.F16).to_bytes(4, "little")
    content[type_at : type_at + 4] = (77).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def known_type_that_is_not_read(folder: Path) -> Path:
    """A GGUF file with a tensor of a type that the format has and this program does not read."""
    metadata, tensors = gguf_parts("tiny-llama")
    raw = np.zeros(tensors["blk.0.ffn_up.weight"].shape, np.int32)
    return write_gguf(folder / "model.gguf", metadata, tensors | {"blk.0.ffn_up.weight": raw})


def unknown_gguf_architecture(folder: Path) -> Path:
    metadata, tensors = gguf_parts("tiny-llama")
    return write_gguf(folder / "model.gguf", metadata | {"general.architecture": "gptj"}, tensors)


def truncated_gguf(folder: Path) -> Path:
    path = write_gguf(folder / "model.gguf", *gguf_parts("tiny-llama"))
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def half_a_gguf_header(folder: Path) -> Path:
    path = write_gguf(folder / "model.gguf", *gguf_parts("tiny-llama"))
    path.write_bytes(path.read_bytes()[:50])
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.touch()
    return path


def foreign_safetensors(folder: Path) -> Path:
    """A folder of the right kind whose tensors belong to another sort of network."""
    foreign = {name.replace("model.", "unet."): tensor for name, tensor in tiny_weights("tiny-llama").items()}
    tensors = {name: ("F16", tensor) for name, tensor in foreign.items()}
    return write_huggingface(folder / "model", tiny_config("tiny-llama"), tensors)


def single_safetensors(folder: Path) -> Path:
    return Path(shutil.copy(DATA / "tiny-llama" / "model.safetensors", folder / "model.safetensors"))


def unknown_huggingface_architecture(folder: Path) -> Path:
    config = tiny_config("tiny-llama") | {"architectures": ["FooForCausalLM"], "model_type": "foo"}
    return write_huggingface(folder / "model", config, {})


def empty_folder(folder: Path) -> Path:
    (folder / "model").mkdir()
    return folder / "model"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (unknown_quant_type, "77"),
        (known_type_that_is_not_read, "blk.0.ffn_up.weight.*I32|I32.*blk.0.ffn_up.weight"),
        (unknown_gguf_architecture, "gptj"),
        (truncated_gguf, "model.gguf"),
        (half_a_gguf_header, "model.gguf"),
        (empty_file, "model.gguf"),
        (foreign_safetensors, "lacks tensors .model.layers.0"),
        (single_safetensors, "give the folder"),
        (unknown_huggingface_architecture, "foo"),
        (empty_folder, "config.json"),
    ],
)
def test_model_files_that_cannot_be_read(
    make: Callable[[Path], Path], told: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    says(run(capsys, "convert", source, "-o", tmp_path / "out"), told)
    says(run(capsys, "generate", "--model", source, "--prompt", "x"), told)
    assert not (tmp_path / "out").exists()
    assert list((home / "stores").glob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"in", home.name}
