"""sentencepiece tokenizers: as a file, rebuilt from GGUF, with special tokens in text and tokens added beside it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    TEXTS,
    gguf_files,
    gguf_tokenizer,
    huggingface_files,
    huggingface_tokenizer,
    sentencepiece_metadata,
    trained_sentencepiece,
)

from specdec.errors import ModelFormatError
from specdec.tokenizers import Tokenizer

INST, INST_S, END_INST, USER = 3, 4, 5, 6
# sentencepiece itself ends a text at a NUL and reads U+2581 as a space: neither comes back.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581")
text = st.text(characters, max_size=50) | st.sampled_from(TEXTS) | st.text(" \n\taeT12,é🙂", max_size=40)


@pytest.fixture(scope="module")
def reference() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=trained_sentencepiece())


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return gguf_tokenizer(sentencepiece_metadata(trained_sentencepiece()), tmp_path_factory.mktemp("rebuilt"))


@pytest.fixture(scope="module")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return huggingface_tokenizer({"tokenizer.model": trained_sentencepiece()}, tmp_path_factory.mktemp("file"))


@settings(max_examples=200, deadline=None)
@given(text)
def test_rebuilt_equals_the_original(
    rebuilt: Tokenizer, from_file: Tokenizer, reference: sentencepiece.SentencePieceProcessor, value: str
) -> None:
    expected = reference.encode(value)
    assert rebuilt.encode(value, add_bos=False) == expected
    assert from_file.encode(value, add_bos=False) == expected
    assert rebuilt.decode(expected) == reference.decode(expected) == value


def test_settings(rebuilt: Tokenizer, from_file: Tokenizer) -> None:
    for tokenizer in (rebuilt, from_file):
        assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, {2}, True)
        assert tokenizer.vocab_size == 400
        assert not tokenizer.has_chat_template
    assert rebuilt.fingerprint == from_file.fingerprint


def test_special_tokens_in_text(rebuilt: Tokenizer, reference: sentencepiece.SentencePieceProcessor) -> None:
    ids = rebuilt.encode("[INST] hi [/INST]")
    assert ids == [1, INST, *reference.encode(" hi "), END_INST]
    assert rebuilt.encode("<s>[INST] hi [/INST]") == ids
    assert rebuilt.encode("[INST]s</s>") == [1, INST_S, 2]
    # A user-defined symbol is sentencepiece's own business: it is text, and no space comes after it.
    assert rebuilt.encode("<|user|>the", add_bos=False) == reference.encode("<|user|>the")
    assert USER in rebuilt.encode("<|user|>the")
    assert rebuilt.decode([1, INST, *reference.encode("hi")], skip_special=True) == "hi"
    assert rebuilt.decode([1, *reference.encode("hi")]) == "<s>hi"


def test_leading_space(rebuilt: Tokenizer, reference: sentencepiece.SentencePieceProcessor) -> None:
    ids = reference.encode("the dog")
    assert reference.id_to_piece(ids[0]).startswith("\u2581")
    assert rebuilt.decode(ids) == "the dog"
    assert rebuilt.decode(ids, continues=True) == " the dog"
    assert rebuilt.decode(reference.encode("  the")) == "  the"


def test_no_dummy_prefix(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata(trained_sentencepiece(), add_space_prefix=False, add_bos_token=False)
    tokenizer = gguf_tokenizer(metadata, tmp_path)
    assert not tokenizer.add_bos
    for value in ("the dog", " the dog", ""):
        assert tokenizer.decode(tokenizer.encode(value)) == value
    assert tokenizer.encode("the") != tokenizer.encode(" the")


def test_unknown_token_without_its_type(tmp_path: Path, rebuilt: Tokenizer) -> None:
    metadata = sentencepiece_metadata(trained_sentencepiece())
    metadata["tokenizer.ggml.token_type"][0] = 1
    assert gguf_tokenizer(metadata, tmp_path).encode(TEXTS[2]) == rebuilt.encode(TEXTS[2])


def test_tokens_added_beside_the_model(tmp_path: Path, reference: sentencepiece.SentencePieceProcessor) -> None:
    added = {
        "0": {"content": "<unk>", "special": True},
        "400": {"content": "<|im_start|>", "special": True},
        "401": {"content": "<|im_end|>", "special": True},
        "402": {"content": "<note>", "special": False},
    }
    config = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "add_bos_token": False}
    files = {"tokenizer.model": trained_sentencepiece(), "tokenizer_config.json": config}
    tokenizer = huggingface_tokenizer(files, tmp_path)
    ids = tokenizer.encode("<|im_start|>hi<note><|im_end|>")
    assert ids == [400, *reference.encode("hi"), 402, 401]
    assert tokenizer.decode(ids, skip_special=True) == "hi<note>"
    assert tokenizer.eos_ids == {2, 401}
    assert tokenizer.vocab_size == 403


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.5]}, "scores must have one entry a token"),
        ({"scores": ["a"] * 400}, "must hold values of type float only"),
        ({"tokens": ["a"] * 400}, "its vocabulary makes no sentencepiece model"),
    ],
)
def test_vocabulary_that_sentencepiece_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        gguf_files(sentencepiece_metadata(trained_sentencepiece(), **changes), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"no protobuf", lambda content: content[:-100]])
def test_file_that_is_no_model(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    content = damage(trained_sentencepiece())
    with pytest.raises(ModelFormatError, match=r"tokenizer\.model is not a sentencepiece model"):
        huggingface_files({"tokenizer.model": content}, tmp_path)


def mistral_models() -> list[Path]:
    """Mistral's own models, when the mistral-common package is installed."""
    spec = find_spec("mistral_common")
    folders = spec.submodule_search_locations if spec else None
    return sorted(path for folder in folders or () for path in Path(folder).glob("data/*.model.v*"))


@pytest.mark.skipif(not mistral_models(), reason="needs the package mistral-common, which carries Mistral's models")
@pytest.mark.parametrize("path", mistral_models(), ids=lambda path: path.name)
def test_real_mistral_models(tmp_path: Path, path: Path) -> None:
    content = path.read_bytes()
    original = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokenizer = gguf_tokenizer(sentencepiece_metadata(content), tmp_path)

    @settings(max_examples=100, deadline=None)
    @given(text)
    def check(value: str) -> None:
        assert tokenizer.encode(value, add_bos=False) == original.encode(value)
        assert tokenizer.decode(original.encode(value)) == value

    check()
    if original.piece_to_id("[INST]"):
        assert tokenizer.encode("[INST] hi") == [1, original.piece_to_id("[INST]"), *original.encode(" hi")]
