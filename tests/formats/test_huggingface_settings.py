"""The small files beside a Hugging Face tokenizer, as transformers 5.24 resolves them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from model_files import tiny_config
from tokenizer_files import CHATML, SPECIAL, saved, tokenizer_json, trained_bpe, trained_sentencepiece

from specdec.errors import ModelFormatError
from specdec.formats import open_source
from specdec.formats.huggingface_tokenizer import tokenizer_files
from specdec.tokenizers import Tokenizer
from specdec.tokenizers.pretokenizers import build_byte_level, rule
from specdec.tokenizers.sentencepiece_model import BYTE, CONTROL, USER_DEFINED, piece_types

LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
HI = [{"role": "user", "content": "hi"}]
NEXT = len(trained_bpe()["vocab"])  # first id after those of the tokenizer.json


def tokenizer_of(files: dict[str, Any], folder: Path, **config: Any) -> Tokenizer:
    """The tokenizer of a folder with these files; a mapping is written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    described = {"model_type": "llama", "vocab_size": 512, "bos_token_id": 1, "eos_token_id": None} | config
    return saved(tokenizer_files(folder, described), folder / "tokenizer")


def pieces(folder: Path, settings: dict[str, Any] | None, text: str, **config: Any) -> str:
    """The pieces of a text, one after the other, with these settings of a tokenizer.model."""
    files = {"tokenizer.model": trained_sentencepiece()}
    files |= {} if settings is None else {"tokenizer_config.json": settings}
    tokenizer = tokenizer_of(files, folder, **config)
    model = sentencepiece.SentencePieceProcessor(model_proto=trained_sentencepiece())
    return "".join(model.id_to_piece(token) for token in tokenizer.encode(text, add_bos=False))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Llama's own class: a space before the first text only, unless `legacy` asks for the older behaviour.
        (LLAMA, "▁the ▁the </s>the </s>▁the"),
        (LLAMA | {"legacy": None}, "▁the ▁the </s>the </s>▁the"),
        (LLAMA | {"legacy": False}, "▁the ▁the </s>the </s>▁the"),
        (LLAMA | {"legacy": True}, "▁the ▁the </s>▁the </s>▁the"),
        (LLAMA | {"add_prefix_space": False}, "the ▁the </s>the </s>▁the"),
        (LLAMA | {"add_prefix_space": False, "legacy": True}, "the ▁the </s>the </s>▁the"),
        # Every other class: sentencepiece's behaviour, unless `legacy` is false.
        (None, "▁the ▁▁the </s>▁the </s>▁▁the"),
        ({}, "▁the ▁▁the </s>▁the </s>▁▁the"),
        ({"legacy": False}, "▁the ▁the </s>the </s>▁the"),
        ({"add_prefix_space": False}, "▁the ▁▁the </s>▁the </s>▁▁the"),
    ],
)
def test_spaces_of_sentencepiece(tmp_path: Path, settings: dict[str, Any] | None, expected: str) -> None:
    found = [pieces(tmp_path, settings, text) for text in ("the", " the", "</s>the", "</s> the")]
    assert found == expected.split()


def test_mistral_has_no_class_of_its_own(tmp_path: Path) -> None:
    assert pieces(tmp_path / "a", LLAMA, "</s>the", model_type="mistral") == "</s>▁the"
    assert pieces(tmp_path / "b", LLAMA | {"legacy": False}, "</s>the", model_type="mistral") == "</s>the"


def test_decoding_follows_the_settings(tmp_path: Path) -> None:
    files = {"tokenizer.model": trained_sentencepiece(), "tokenizer_config.json": LLAMA | {"add_prefix_space": False}}
    tokenizer = tokenizer_of(files, tmp_path)
    for text in ("the dog", " the dog", "  the"):
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text


def test_flags_of_added_tokens(tmp_path: Path) -> None:
    added = {
        "400": {"content": "<|user|>!", "special": True, "rstrip": True},
        "401": {"content": "<note>", "special": False, "lstrip": True},
    }
    files = {
        "tokenizer.model": trained_sentencepiece(),
        "tokenizer_config.json": LLAMA | {"added_tokens_decoder": added, "legacy": False},
    }
    tokenizer = tokenizer_of(files, tmp_path, vocab_size=402)
    plain = tokenizer.encode("</s>the", add_bos=False)[1:]
    assert tokenizer.encode("<|user|>! \n the", add_bos=False) == [400, *plain]
    assert tokenizer.encode("</s>the <note>", add_bos=False) == [2, *plain, 401]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_added_tokens_of_older_checkpoints(tmp_path: Path, name: str) -> None:
    is_bpe = name == "tokenizer.json"
    first = NEXT if is_bpe else 400
    files = {
        name: tokenizer_json() if is_bpe else trained_sentencepiece(),
        "added_tokens.json": {"<|eot_id|>": first, "<note>": first + 1},
        "special_tokens_map.json": {"eos_token": {"content": "<|eot_id|>"}},
        "tokenizer_config.json": {"eos_token": "</s>"},
    }
    tokenizer = tokenizer_of(files, tmp_path, vocab_size=first + 2, eos_token_id=None)
    assert tokenizer.encode("<|eot_id|><note>", add_bos=False) == [first, first + 1]
    assert first in tokenizer.eos_ids
    assert tokenizer.decode([first, first + 1], skip_special=True) == "<note>"
    assert tokenizer.vocab_size == first + 2


def test_tokens_that_only_the_settings_name(tmp_path: Path) -> None:
    settings = {
        "eos_token": "<|eot_id|>",
        "additional_special_tokens": ["<y>", {"content": "<z>"}],
        "pad_token": "<|im_end|>",
    }
    files = {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": settings}
    tokenizer = tokenizer_of(files, tmp_path / "all", vocab_size=NEXT + 3)
    assert [tokenizer.control_id(text) for text in ("<|eot_id|>", "<y>", "<z>")] == [NEXT, NEXT + 1, NEXT + 2]
    assert NEXT in tokenizer.eos_ids
    # The model has no row for the last one.
    tokenizer = tokenizer_of(files, tmp_path / "fewer", vocab_size=NEXT + 2)
    assert tokenizer.control_id("<z>") is None
    assert max(tokenizer.encode("<y><z>")) == NEXT + 1


def test_which_file_names_a_token(tmp_path: Path) -> None:
    older = {"special_tokens_map.json": {"bos_token": "<|im_end|>"}, "tokenizer.json": tokenizer_json()}
    settings = {"bos_token": "<|im_start|>"}
    tokenizer = tokenizer_of(older | {"tokenizer_config.json": settings}, tmp_path / "older")
    assert tokenizer.bos_id == 2
    settings = settings | {"added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True}}}
    tokenizer = tokenizer_of(older | {"tokenizer_config.json": settings}, tmp_path / "newer")
    assert tokenizer.bos_id == 1


def test_every_special_token_is_a_variable_of_the_template(tmp_path: Path) -> None:
    settings = {
        "sep_token": "<a>",
        "image_token": {"content": "<b>"},
        "chat_template": "{{ sep_token }}{{ image_token }}",
    }
    files = {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": settings}
    assert tokenizer_of(files, tmp_path).apply_chat_template(HI) == "<a><b>"


def test_where_the_template_is(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "tokenizer.json": tokenizer_json(),
        "chat_template.json": {"chat_template": "processor"},
    }
    assert tokenizer_of(files, tmp_path / "a").apply_chat_template(HI) == "processor"
    files["tokenizer_config.json"] = {"chat_template": {"default": "settings", "tool_use": "x"}}
    assert tokenizer_of(files, tmp_path / "b").apply_chat_template(HI) == "settings"
    files["chat_template.jinja"] = b"file"
    assert tokenizer_of(files, tmp_path / "c").apply_chat_template(HI) == "file"


def test_a_chat_begins_as_the_template_says(tmp_path: Path) -> None:
    """transformers adds no first token to a chat, unlike llama.cpp."""
    settings = {"bos_token": "<|im_start|>", "chat_template": "{{ messages[0].content }}"}
    files = {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": settings}
    tokenizer = tokenizer_of(files, tmp_path)
    assert tokenizer.add_bos
    assert tokenizer.encode("hi")[0] == 1
    assert tokenizer.encode_chat(HI) == tokenizer.encode("hi", add_bos=False)


def test_ends_of_generation_config(tmp_path: Path) -> None:
    files = {"tokenizer.json": tokenizer_json(), "generation_config.json": {"eos_token_id": [7, 9, "x", None]}}
    assert tokenizer_of(files, tmp_path, eos_token_id=[11]).eos_ids == {0, 2, 7, 9, 11}


def test_links_to_files_that_are_not_there(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    for name in ("generation_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / name).symlink_to("../blobs/missing")
    assert tokenizer_of({"tokenizer.json": tokenizer_json()}, tmp_path).encode("the")


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("tiny-llama")))
    (tmp_path / "model.safetensors").symlink_to("../blobs/missing")
    with pytest.raises(ModelFormatError, match=r"has no model\.safetensors"):
        open_source(tmp_path)


@pytest.mark.parametrize(("family", "name"), [("qwen2", "qwen2"), ("llama", "gpt2")])
def test_vocabulary_and_merges_in_files_of_their_own(tmp_path: Path, family: str, name: str) -> None:
    model = trained_bpe()
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"
    files = {
        "vocab.json": model["vocab"],
        "merges.txt": merges.encode(),
        "tokenizer_config.json": {
            "eos_token": "<|im_end|>",
            "additional_special_tokens": SPECIAL,
            "chat_template": CHATML,
        },
    }
    tokenizer = tokenizer_of(files, tmp_path, model_type=family)
    pairs = [(left, right) for left, right in model["merges"]]
    expected = build_byte_level(model["vocab"], pairs, rule=rule(name), special=SPECIAL)
    for text in ("IT'S the 1234 dogs\n\n x", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False).ids


def test_merges_that_are_damaged(tmp_path: Path) -> None:
    files = {"vocab.json": {"a": 0}, "merges.txt": b"a b c\n"}
    with pytest.raises(ModelFormatError, match=r"merges\.txt has 'a b c', which is not a pair"):
        tokenizer_of(files, tmp_path)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_merges_with_line_ends_of_windows_and_marks_that_no_file_names(tmp_path: Path, family: str) -> None:
    model = trained_bpe()
    files = {"vocab.json": model["vocab"], "merges.txt": "\n".join(" ".join(pair) for pair in model["merges"]).encode()}
    unix = tokenizer_of(files, tmp_path / "unix", model_type=family)
    windows = files | {"merges.txt": b"\xef\xbb\xbf" + files["merges.txt"].replace(b"\n", b"\r\n") + b"\r\n"}
    tokenizer = tokenizer_of(windows, tmp_path / "windows", model_type=family)
    for text in ("The quick dog's  \n\n 12", "<|endoftext|>The"):
        assert tokenizer.encode(text) == unix.encode(text)
    assert unix.encode("<|endoftext|>") == [0]


def test_tokens_of_the_vocabulary_that_only_the_settings_call_special(tmp_path: Path) -> None:
    content = copy.deepcopy(tokenizer_json())
    content["added_tokens"] = []
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "pad_token": "!"}
    files = {"tokenizer.json": content, "tokenizer_config.json": settings}
    tokenizer = tokenizer_of(files, tmp_path)
    assert tokenizer.encode("<|im_start|>hi<|im_end|>", add_bos=False)[::3] == [1, 2]
    assert tokenizer.decode([1, 2], skip_special=True) == ""
    exclamation = tokenizer.encode("!", add_bos=False)
    assert tokenizer.decode(exclamation, skip_special=True) == "!"  # it pads, and is text all the same


def test_symbols_of_a_sentencepiece_model_stand_between_texts(tmp_path: Path) -> None:
    assert pieces(tmp_path / "first", LLAMA, "<|user|>the <|user|>the") == "<|user|>the▁<|user|>the"
    assert pieces(tmp_path / "always", LLAMA | {"legacy": True}, "<|user|>the") == "<|user|>▁the"
    assert pieces(tmp_path / "model", {}, "<|user|>the") == "▁<|user|>the"
    tokenizer = tokenizer_of(
        {"tokenizer.model": trained_sentencepiece(), "tokenizer_config.json": LLAMA}, tmp_path / "decoded"
    )
    assert tokenizer.decode(tokenizer.encode("<|user|>the"), skip_special=True) == "<|user|>the"


def test_a_sentencepiece_model_without_a_special_token_that_is_named(tmp_path: Path) -> None:
    settings = LLAMA | {"pad_token": "<pad>", "additional_special_tokens": ["<note>", "[INST]"]}
    files = {"tokenizer.model": trained_sentencepiece(), "tokenizer_config.json": settings}
    tokenizer = tokenizer_of(files, tmp_path / "rows", vocab_size=402)
    assert tokenizer.encode("<pad><note>", add_bos=False) == [400, 401]
    # The model has no row for the last one.
    assert max(tokenizer_of(files, tmp_path / "fewer", vocab_size=401).encode("<pad><note>")) == 400


def test_types_of_pieces() -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained_sentencepiece())
    kinds = piece_types(trained_sentencepiece())
    assert len(kinds) == processor.vocab_size()
    assert [processor.id_to_piece(index) for index, kind in enumerate(kinds) if kind == USER_DEFINED] == ["<|user|>"]
    assert [kind == CONTROL for kind in kinds] == [processor.is_control(index) for index in range(len(kinds))]
    assert [kind == BYTE for kind in kinds] == [processor.is_byte(index) for index in range(len(kinds))]
