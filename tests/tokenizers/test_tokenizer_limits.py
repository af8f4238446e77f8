"""Bounds on tokenizers: what would multiply text or fill the memory is refused, and usual ones are not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from text_model import tokenizer_files

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.tokenizers import load_tokenizer
from specdec.tokenizers.bpe import read_backend
from specdec.tokenizers.long_text import encode_long
from specdec.tokenizers.meta import BPE_NAME
from specdec.tokenizers.pretokenizers import build_byte_level, rule
from specdec.tokenizers.tokenizer_limits import MOST_TEXT_BYTES, check_added, check_tokenizer

TEXT = {"Sequence": {"id": "A", "type_id": 0}}
MARK = {"SpecialToken": {"id": "<s>", "type_id": 0}}


def steps(*kinds: dict[str, Any] | str) -> dict[str, Any]:
    """A sequence of normalizers."""
    return {
        "type": "Sequence",
        "normalizers": [{"type": kind} if isinstance(kind, str) else {"type": "Replace"} | kind for kind in kinds],
    }


def table(*replacements: bytes) -> dict[str, Any]:
    """A normalizer with sentencepiece's table of these replacements."""
    content = (4).to_bytes(4, "little") + bytes(4) + b"\0".join(replacements)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def sequence(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """A sequence of steps that cut a text."""
    return {"type": "Sequence", "pretokenizers": steps}


def template(single: list[dict[str, Any]], token: dict[str, Any] | None = None) -> dict[str, Any]:
    """A template of pieces, and a token that it may name."""
    return {"type": "TemplateProcessing", "single": single, "special_tokens": {"<s>": token} if token else {}}


BYTES_SEVEN_TIMES = sequence([{"type": "ByteLevel"}] * 7)
USUAL: tuple[dict[str, Any], ...] = (
    {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "model": {"vocab": {"a": 0}, "merges": []}},
    {"normalizer": steps("NFKD", "StripAccents", "Lowercase"), "pre_tokenizer": {"type": "ByteLevel"}},
    {"normalizer": steps(*[{"pattern": {"String": mark}, "content": '"'} for mark in "“”«»„"], "NFKC")},
    {"normalizer": steps("Nmt", "NFKC", {"pattern": {"Regex": " {2,}"}, "content": " "})},
    {"normalizer": steps({"pattern": {"String": " "}, "content": "▁"})},
    {"normalizer": table(b"fi", "صلى الله عليه وسلم".encode()), "pre_tokenizer": {"type": "Metaspace"}},
    {"post_processor": {"type": "TemplateProcessing", "single": [MARK, TEXT, MARK], "pair": [MARK, TEXT, MARK, TEXT]}},
)  # fmt: skip
GROWING: dict[str, tuple[dict[str, Any], str]] = {
    "a text": ({"normalizer": steps(*[{"pattern": {"String": "a"}, "content": "aa"}] * 13)}, "multiplies text"),
    "bytes": ({"normalizer": steps(*[{"pattern": {"String": "a"}, "content": "é"}] * 13)}, "multiplies text"),
    "a pattern": ({"normalizer": steps({"pattern": {"Regex": "a|"}, "content": "b" * 5000})}, "multiplies text"),
    "compatibility": ({"normalizer": steps(*["NFKC"] * 3)}, "multiplies text"),
    "a table": ({"normalizer": table(b"a", b"b" * 5000)}, "multiplies text"),
    "both rooms": ({"normalizer": steps(*["ByteLevel"] * 7), "pre_tokenizer": BYTES_SEVEN_TIMES}, "multiplies text"),
    "steps within steps": ({"pre_tokenizer": sequence([BYTES_SEVEN_TIMES] * 2)}, "multiplies text"),
    "before": ({"normalizer": {"type": "Prepend", "prepend": "a" * 5000}}, "puts more than 4096 characters before"),
    "templates": ({"post_processor": {"processors": [template([TEXT, TEXT])] * 5}}, "repeats a text"),
    "tokens": ({"post_processor": template([MARK] * 20, {"ids": [0] * 20})}, "adds more than 256 tokens"),
    "patterns": ({"pre_tokenizer": {"pattern": {"Regex": "a" * 70_000}}}, "regular expression of more than"),
    "steps": ({"normalizer": steps(*["Strip"] * 300)}, "more than 256 steps"),
    "vocabulary": ({"model": {"vocab": dict.fromkeys(map(str, range((1 << 20) + 1)))}}, "has 1048577 tokens"),
    "trie": ({"model": {"vocab": [["x" * (1 << 22), 0], ["y", 0]]}}, "more than 4 MiB of text"),
    "merges": ({"model": {"vocab": {}, "merges": ["a b"] * ((1 << 21) + 1)}}, "merges"),
    "added": ({"added_tokens": [{"content": f"<{n}>"} for n in range(33_000)]}, "has 33000 control or added tokens"),
}


def test_usual_tokenizers_are_within_the_bounds() -> None:
    for values in USUAL:
        check_tokenizer(values, BPE_NAME)


@pytest.mark.parametrize(("values", "told"), GROWING.values(), ids=GROWING.keys())
def test_what_grows_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelFormatError, match=told):
        check_tokenizer(values, BPE_NAME)


@pytest.mark.parametrize("odd", [None, 1, "x", [], {}, [None], [[]], {"type": None}, {"type": []}, {"type": "Replace"}])
def test_what_is_malformed_is_left_to_the_library(odd: Any) -> None:
    for key in ("normalizer", "pre_tokenizer", "post_processor", "added_tokens", "model"):
        check_tokenizer({key: odd}, BPE_NAME)
    for key in ("normalizers", "pretokenizers", "processors"):
        check_tokenizer({"normalizer": {"type": "Sequence", key: [odd]}}, BPE_NAME)
    for key in ("pattern", "content", "prepend", "single", "special_tokens", "precompiled_charsmap"):
        for kind in ("Replace", "Precompiled", "TemplateProcessing"):
            check_tokenizer(
                {"normalizer": {"type": kind, key: odd}, "post_processor": {"type": kind, key: odd}}, BPE_NAME
            )
    check_tokenizer({"model": {"vocab": odd, "merges": odd}}, BPE_NAME)


def test_added_tokens_have_a_length() -> None:
    check_added(["x" * 4096] * 1000, "it")
    for texts in (["x" * 4097], ["x" * 4096] * 1100):
        with pytest.raises(ModelFormatError, match="too long"):
            check_added(texts, "it")


def test_neither_padding_nor_truncation_reaches_a_prompt() -> None:
    values = json.loads(tokenizer_files()[BPE_NAME])
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    values["padding"] = padding | {"pad_type_id": 0, "pad_token": "x"}
    values["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    assert len(read_backend(json.dumps(values).encode()).encode("hello").ids) == 5


@pytest.mark.parametrize("pattern", ["(x+x+)+y|(.+)+(.+)+(.+)+(.+)+$z", r"(\w|\s|.)*(\w|\s|.)*[\d\D](?!\s|\S)q"])
def test_a_pattern_that_backtracks_is_refused(pattern: str) -> None:
    values = json.loads(tokenizer_files()[BPE_NAME])
    values["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    with pytest.raises(ModelFormatError, match=r"takes too long|retry-limit"):
        read_backend(json.dumps(values).encode())


def test_a_vocabulary_of_control_tokens_is_refused() -> None:
    vocabulary = {f"<{n}>": n for n in range(33_000)}
    with pytest.raises(ModelFormatError, match="has 33000 control or added tokens: at most 32768"):
        build_byte_level(vocabulary, [], rule=rule("gpt-2"), special=list(vocabulary))


def test_a_long_text_is_encoded_in_parts(tmp_path: Path) -> None:
    for name, content in tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = load_tokenizer(tmp_path)
    text = "abc\ndéf " * 300_000
    assert len(text) > MOST_TEXT_BYTES // 4
    ids = encode_long(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer.encode(text, add_bos=False)  # one token for each byte
    with pytest.raises(InvalidArgumentError, match="at most 8388608 are encoded"):
        tokenizer.encode("a" * (MOST_TEXT_BYTES + 1))
