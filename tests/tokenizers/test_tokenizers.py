"""Byte-level BPE: rebuilt from GGUF, or from a tokenizer.json; text to ids and back, special tokens, bad files."""

from __future__ import annotations

import copy
import json
import pickle
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import gguf_parts, write_gguf
from models import real_model_path
from places import DATA
from tokenizer_files import (
    CHATML,
    ROWS,
    TEXTS,
    bpe_metadata,
    gguf_files,
    gguf_tokenizer,
    huggingface_files,
    huggingface_tokenizer,
    saved,
    sentencepiece_metadata,
    tokenizer_json,
    trained_bpe,
    trained_sentencepiece,
)
from tokenizers import decoders, models, normalizers

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.formats import open_source
from specdec.tokenizers import Tokenizer, has_tokenizer, load_tokenizer
from specdec.tokenizers.meta import AddedToken, TokenizerMeta
from specdec.tokenizers.pretokenizers import RULES, build_byte_level, rule

WORDPIECE = {"type": "WordPiece", "prefix": "#", "cleanup": True}
text = st.text(max_size=60) | st.sampled_from(TEXTS) | st.text(" \n\t'aesTD12,;é🙂", max_size=40)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return gguf_tokenizer(bpe_metadata(), tmp_path_factory.mktemp("smollm"))


@cache
def published_style(pre: str) -> tokenizers.Tokenizer:
    """The same vocabulary put together as the model families' own tokenizer.json files are."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def split(numbers: str) -> list[dict[str, Any]]:
        pattern = {"Regex": words.replace("NUMBERS", numbers)}
        return [
            {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ]

    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = {
        "gpt2": [gpt2],
        "smollm": [{"type": "Digits", "individual_digits": True}, gpt2],
        "qwen2": split(r"\p{N}"),
        "llama-bpe": split(r"\p{N}{1,3}"),
    }[pre]
    whole = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": trained_bpe() | {"ignore_merges": pre == "llama-bpe"},
    }
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


@pytest.mark.parametrize("pre", ["gpt2", "smollm", "qwen2", "llama-bpe"])
def test_rebuilt_from_gguf(tmp_path: Path, pre: str) -> None:
    tokenizer = gguf_tokenizer(bpe_metadata(pre), tmp_path)

    @settings(max_examples=150, deadline=None)
    @given(text)
    def check(value: str) -> None:
        assert tokenizer.encode(value) == published_style(pre).encode(value, add_special_tokens=False).ids
        expected = unicodedata.normalize("NFC", value) if pre == "qwen2" else value
        assert tokenizer.decode(tokenizer.encode(value)) == expected

    check()


@pytest.mark.parametrize(
    ("pre", "value", "parts"),
    [
        ("gpt2", "It's 12345!\n\n x", ["It", "'s", "Ġ12345", "!", "ĊĊ", "Ġx"]),
        ("smollm", "It's 12345!\n\n x", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "!", "ĊĊ", "Ġx"]),
        ("qwen2", "IT'S 12345!\n\n x", ["IT", "'S", "Ġ", "1", "2", "3", "4", "5", "!ĊĊ", "Ġx"]),
        ("llama-bpe", "IT'S 12345!\n\n x", ["IT", "'S", "Ġ", "123", "45", "!ĊĊ", "Ġx"]),
    ],
)
def test_how_each_family_cuts_text(pre: str, value: str, parts: list[str]) -> None:
    backend = build_byte_level(trained_bpe()["vocab"], [], rule=rule(pre))
    assert [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(value)] == parts


def test_whole_words_ignore_merges() -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    merges = [("a", "b")]
    assert build_byte_level(vocabulary, merges, rule=RULES["llama-bpe"]).encode("abc").ids == [4]
    assert build_byte_level(vocabulary, merges, rule=RULES["qwen2"]).encode("abc").ids == [3, 2]


def test_a_file_without_pre_tokenizer_has_the_default_one(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre is missing: text is cut by a default rule"):
        unnamed = gguf_files(bpe_metadata(None), tmp_path / "unnamed")
    assert unnamed == gguf_files(bpe_metadata("default"), tmp_path / "named")


def test_special_tokens(smollm: Tokenizer) -> None:
    ids = smollm.encode("<|im_start|>user\nhi<|im_end|><tool>")
    tool = len(trained_bpe()["vocab"])
    assert (ids[0], ids[-2:]) == (1, [2, tool])
    assert smollm.decode(ids) == "<|im_start|>user\nhi<|im_end|><tool>"
    # A user-defined token is text; a control token is not.
    assert smollm.decode(ids, skip_special=True) == "user\nhi<tool>"
    assert (smollm.bos_id, smollm.eos_ids, smollm.add_bos) == (1, {0, 2}, False)
    assert smollm.vocab_size == tool + 1


def test_literal_text(smollm: Tokenizer) -> None:
    ids = smollm.encode("<|im_start|>user\nhi<|im_end|><tool>", literal=True)
    assert not smollm.eos_ids & set(ids)
    assert smollm.bos_id not in ids
    assert smollm.decode(ids) == "<|im_start|>user\nhi<|im_end|><tool>"
    assert smollm.encode("the dog", literal=True) == smollm.encode("the dog")


def test_ids_that_mean_nothing(smollm: Tokenizer) -> None:
    assert smollm.decode([ROWS - 1, *smollm.encode("x"), 10**9]) == "x"
    assert len(smollm.encode(f"[PAD{ROWS - 1}]")) > 1
    with pytest.raises(InvalidArgumentError, match="not negative, unlike -1"):
        smollm.decode([-1])


def test_first_token(tmp_path: Path, smollm: Tokenizer) -> None:
    assert smollm.encode("x", add_bos=True) == [1, *smollm.encode("x")]
    adds = gguf_tokenizer(bpe_metadata(add_bos_token=True), tmp_path / "adds")
    assert adds.encode("x")[0] == 1
    assert adds.encode("x", add_bos=False) == smollm.encode("x")
    assert adds.encode("") == [1]
    # A rendered template may hold it already.
    assert adds.encode("<|im_start|>x") == smollm.encode("<|im_start|>x")
    assert adds.encode("<|im_start|>x", add_bos=True)[:2] == [1, 1]
    metadata = bpe_metadata("llama-bpe")
    del metadata["tokenizer.ggml.add_bos_token"]
    assert gguf_tokenizer(metadata, tmp_path / "llama").add_bos
    del metadata["tokenizer.ggml.bos_token_id"]
    none = gguf_tokenizer(metadata, tmp_path / "none")
    assert (none.bos_id, none.add_bos) == (None, False)
    with pytest.raises(InvalidArgumentError, match="no token that begins a text"):
        none.encode("x", add_bos=True)


def test_text_that_is_no_unicode(smollm: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="half a surrogate pair at position 2"):
        smollm.encode("ab\ud800")


@pytest.mark.parametrize("way", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy], ids=["pickle", "copy"])
def test_copies_and_pickles(tmp_path: Path, smollm: Tokenizer, way: Callable[[Tokenizer], Tokenizer]) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    for tokenizer in (smollm, gguf_tokenizer(sentencepiece_metadata(trained_sentencepiece()), tmp_path)):
        ids = tokenizer.encode("Hello world")
        if tokenizer.has_chat_template:
            ids = tokenizer.encode_chat(messages)  # compiles the template
        other = way(tokenizer)
        assert other.encode("Hello world") == tokenizer.encode("Hello world")
        assert other.decode(ids) == tokenizer.decode(ids)
        if tokenizer.has_chat_template:
            assert other.encode_chat(messages) == ids


def test_values_of_other_types(smollm: Tokenizer) -> None:
    for value in (None, 5, b"text"):
        with pytest.raises(InvalidArgumentError, match=f"a tokenizer encodes text, not {value!r}"):
            smollm.encode(value)  # type: ignore[arg-type]
    for ids in ("ab", 5, [1.5]):
        with pytest.raises(InvalidArgumentError, match="a tokenizer decodes a list of whole numbers, not "):
            smollm.decode(ids)  # type: ignore[arg-type]


def test_fingerprint(tmp_path: Path, smollm: Tokenizer) -> None:
    # Other settings, and no filling: still the same tokens under the same ids.
    metadata = bpe_metadata("gpt2", eos_token_id=0)
    size = smollm.vocab_size
    for key in ("tokens", "token_type"):
        metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"][:size]
    assert gguf_tokenizer(metadata, tmp_path / "same").fingerprint == smollm.fingerprint
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[0], tokens[1] = tokens[1], tokens[0]
    assert gguf_tokenizer(metadata, tmp_path / "other").fingerprint != smollm.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "gpt-5"}, "unknown pre-tokenizer 'gpt-5': this version knows a.x-4.0, .*llama-bpe, .*qwen2"),
        ({"model": "bert"}, r"unknown tokenizer 'bert': this version reads gpt2 \(BPE\) and llama"),
        ({"merges": ["h e", "q z"]}, "vocabulary and merges do not fit: .*qz"),
        ({"merges": ["he"]}, "has 'he', which is not a pair"),
        ({"merges": [1, 2]}, "must hold values of type str only"),
        ({"merges": []}, r"has no tokenizer\.ggml\.merges, so text cannot become tokens"),
        ({"tokens": ["a"] * ROWS}, "names a token twice"),
        ({"token_type": [1, 2]}, "must have one entry a token"),
        ({"bos_token_id": "one"}, "bos_token_id must be a whole number"),
    ],
)
def test_gguf_vocabulary_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        gguf_files(bpe_metadata(**changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    metadata, tensors = gguf_parts("tiny-qwen2")
    path = write_gguf(tmp_path / "m.gguf", metadata | bpe_metadata(), tensors)
    with pytest.raises(ModelFormatError, match=f"{ROWS} tokens, but only 320 rows of embeddings"):
        open_source(path)


def test_huggingface_tokenizer_json(tmp_path: Path, smollm: Tokenizer) -> None:
    settings_file = {
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}],
    }
    files = {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": settings_file}
    tokenizer = huggingface_tokenizer(files, tmp_path / "a", eos_token_id=7)
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (1, True, {0, 2, 7})
    assert tokenizer.encode("the dog") == [1, *smollm.encode("the dog")]
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == prompt
    # The file's own post-processor decides about the first token, as in transformers.
    files["tokenizer_config.json"] = settings_file | {"add_bos_token": False, "chat_template": "x"}
    files["generation_config.json"] = {"eos_token_id": [3, 4]}
    files["chat_template.jinja"] = b"{{ messages[0].content }}{{ eos_token }}"
    tokenizer = huggingface_tokenizer(files, tmp_path / "b", eos_token_id=None)
    assert (tokenizer.add_bos, tokenizer.eos_ids) == (True, {0, 2, 3, 4})
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi<|im_end|>"


def test_huggingface_tokenizer_without_settings(tmp_path: Path) -> None:
    tokenizer = huggingface_tokenizer({"tokenizer.json": tokenizer_json()}, tmp_path, eos_token_id=5)
    # The tiny checkpoint's config.json names token 1 as the first.
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (1, True, {0, 2, 5})
    assert not tokenizer.has_chat_template


def settings_refused(**config: Any) -> dict[str, Any]:
    return {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": config}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"tokenizer.json": b"{}"}, "tokenizer.json cannot be read"),
        (lambda: {"tokenizer.json": b"\xff"}, "tokenizer.json cannot be read"),
        (lambda: {"tokenizer.json": tokenizer_json(decoder=WORDPIECE)}, r"unsupported decoder \(WordPiece\)"),
        (lambda: {"tokenizer.json": tokenizer_json(decoder=None)}, r"unsupported decoder \(none\)"),
        (lambda: {"vocab.json": {}}, "vocab.json is not read: save the tokenizer as tokenizer.json or tokenizer.model"),
        (lambda: settings_refused() | {"tokenizer_config.json": b"["}, "tokenizer_config.json is not valid JSON"),
    ],
)
def test_huggingface_tokenizer_that_cannot_be_read(
    tmp_path: Path, make: Callable[[], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        huggingface_files(make(), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: settings_refused(chat_template=3), "chat_template is neither a text nor a list of named templates"),
        (
            lambda: settings_refused(chat_template=[{"name": x, "template": x} for x in "ab"]),
            "of the chat templates a, b none is named 'default': none is used",
        ),
        (
            lambda: settings_refused() | {"chat_template.jinja": b"\xff"},
            "chat_template.jinja is not valid UTF-8: it is not used",
        ),
        (lambda: settings_refused() | {"generation_config.json": b"["}, "generation_config.json is not valid JSON"),
        (
            lambda: settings_refused() | {"special_tokens_map.json": b"[]"},
            "special_tokens_map.json must hold a JSON obj",
        ),
        (lambda: settings_refused() | {"added_tokens.json": b"1"}, "added_tokens.json must hold a JSON object"),
        (lambda: settings_refused() | {"chat_template.json": b"{"}, "chat_template.json is not valid JSON"),
    ],
)
def test_what_is_not_needed_never_stops_a_load(
    tmp_path: Path, make: Callable[[], dict[str, Any]], message: str
) -> None:
    with pytest.warns(UserWarning, match=message):
        tokenizer = huggingface_tokenizer(make(), tmp_path)
    assert tokenizer.encode("the dog")
    assert not tokenizer.has_chat_template


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json()))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = huggingface_tokenizer({"tokenizer.json": json.loads(backend.to_str())}, tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0], add_bos=False)) == TEXTS[0]


def byte_fallback_json() -> dict[str, Any]:
    """The kind of tokenizer.json that Llama 2 has: sentencepiece's BPE in the other library's format."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {letter: 259 + n for n, letter in enumerate(letters)}
    merges = [("\u2581", "a"), ("\u2581", "b"), ("\u2581a", "b")]
    vocabulary |= {left + right: 300 + n for n, (left, right) in enumerate(merges)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return json.loads(backend.to_str())


def test_byte_fallback_tokenizer_json(tmp_path: Path) -> None:
    content = byte_fallback_json()
    tokenizer = huggingface_tokenizer({"tokenizer.json": content}, tmp_path)
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))

    @settings(max_examples=100, deadline=None)
    @given(st.text(" ab\u00e9\u6771\U0001f642", max_size=20))
    def check(value: str) -> None:
        ids = tokenizer.encode(value, add_bos=False)
        assert ids == backend.encode(value, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == backend.decode(ids) == value

    check()
    assert tokenizer.decode(tokenizer.encode("ab", add_bos=False), continues=True) == " ab"


def test_byte_level_decoding_equals_the_library(smollm: Tokenizer) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, smollm.vocab_size - 2), max_size=30))
    def check(ids: list[int]) -> None:
        assert smollm.decode(ids) == published_style("smollm").decode(ids, skip_special_tokens=False)

    check()


def test_a_model_without_tokenizer(tmp_path: Path) -> None:
    assert open_source(DATA / "tiny-llama").tokenizer_files == {}
    assert not has_tokenizer(tmp_path)
    with pytest.raises(ModelFormatError, match="has no tokenizer: give token ids"):
        load_tokenizer(tmp_path)


def test_meta_round_trip() -> None:
    meta = TokenizerMeta(
        kind="sentencepiece", bos_id=1, eos_ids=(2, 5), add_bos=True, chat_template="é{{ 1 }}\n",
        special_tokens={"bos_token": "<s>"}, added_tokens=(AddedToken(9, "<|x|>", True),),
    )  # fmt: skip
    assert TokenizerMeta.from_bytes(meta.to_bytes()) == meta


def test_meta_of_an_older_version() -> None:
    values = json.loads(TokenizerMeta(kind="bpe", eos_ids=(2,)).to_bytes()) | {"format": 1}
    del values["chat_bos"], values["prefix"]
    assert TokenizerMeta.from_bytes(json.dumps(values).encode()) == TokenizerMeta(kind="bpe", eos_ids=(2,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "has format 3, this version reads up to 2"),
        ({"prefix": "last"}, "is damaged"),
        ({"chat_bos": 1}, "is damaged"),
        ({"kind": "wordpiece"}, "is damaged"),
        ({"eos_ids": [-1]}, "is damaged"),
        ({"eos_ids": None}, "is damaged"),
        ({"bos_id": None, "add_bos": True}, "is damaged"),
        ({"added_tokens": [{"id": 1}]}, "is damaged"),
        ({"special_tokens": {"bos_token": 1}}, "is damaged"),
        ({"more": 1}, "is damaged"),
    ],
)
def test_damaged_meta(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    values = json.loads(TokenizerMeta(kind="bpe").to_bytes()) | changes
    (tmp_path / "tokenizer_meta.json").write_text(json.dumps(values))
    with pytest.raises(ModelFormatError, match=f"tokenizer_meta.json {message}"):
        load_tokenizer(tmp_path)


def test_missing_or_broken_tokenizer_file(tmp_path: Path) -> None:
    meta = {"tokenizer_meta.json": TokenizerMeta(kind="bpe").to_bytes()}
    with pytest.raises(ModelFormatError, match=r"cannot read the tokenizer file .*tokenizer\.json"):
        saved(meta, tmp_path)
    (tmp_path / "tokenizer_meta.json").write_bytes(b"[]")
    with pytest.raises(ModelFormatError, match="is damaged"):
        load_tokenizer(tmp_path)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_golden_tokens(tmp_path: Path, name: str) -> None:
    source = open_source(real_model_path(name))
    tokenizer = saved(source.tokenizer_files, tmp_path)
    rows = json.loads((DATA / f"golden_tokens-{name}.json").read_text(encoding="utf-8"))["rows"]
    assert {row["kind"] for row in rows} == {"chat", "raw"}
    for row in rows:
        assert tokenizer.encode(row["text"]) == row["prompt_ids"]
        assert tokenizer.decode(row["prompt_ids"]) == row["text"]
        if row["kind"] == "chat":
            assert tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}]) == row["text"]
