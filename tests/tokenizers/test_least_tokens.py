"""The number of tokens that a text takes at least, which is known before it is encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    TEXTS,
    bpe_metadata,
    gguf_tokenizer,
    huggingface_tokenizer,
    sentencepiece_metadata,
    tokenizer_json,
    trained_sentencepiece,
)

from specdec.tokenizers import Tokenizer

# Runs that one token covers, characters that a normalizer joins, control tokens, and what looks like them.
PARTS = [
    " ", "    ", "\n", "\u2581", "\0", "x", "e\u0301", "\u212b\u0323", "\u1100\u1161\u11a8", "<|im_end|>", "[INST]",
    "<tool>", "🙂", "\U000f1234", *TEXTS,
]  # fmt: skip
text = st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=["Cs"]), max_size=30).map("".join)
KINDS: dict[str, Any] = {
    "smollm": lambda folder: gguf_tokenizer(bpe_metadata(), folder),
    "qwen2": lambda folder: gguf_tokenizer(bpe_metadata("qwen2"), folder),
    "sentencepiece": lambda folder: huggingface_tokenizer({"tokenizer.model": trained_sentencepiece()}, folder),
    "rebuilt": lambda folder: gguf_tokenizer(sentencepiece_metadata(trained_sentencepiece()), folder),
}


def least_tokens(tokenizer: Tokenizer, value: str, **options: Any) -> tuple[int, int]:
    """The number that is said before the work, and how many tokens there are."""
    said: list[int] = []
    ids = tokenizer.encode(value, fit=said.append, **options)
    return said[0], len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_takes_fewer(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind](tmp_path)

    @settings(max_examples=200, deadline=None)
    @given(text, st.booleans())
    def check(value: str, literal: bool) -> None:
        least, count = least_tokens(tokenizer, value, add_bos=False, literal=literal)
        assert least <= count

    check()
    longest = max(map(len, tokenizer.pieces))
    assert least_tokens(tokenizer, "The fox " * 1000)[0] == -(-8000 // longest)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "e"}, "content": ""}},
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            }
        },
    ],
    ids=lambda changes: str(next(iter(changes.values())))[:60],
)
def test_nothing_is_said_where_text_may_be_dropped(changes: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = huggingface_tokenizer({"tokenizer.json": tokenizer_json(**changes)}, tmp_path)
    assert least_tokens(tokenizer, "e" * 10_000)[0] == 0


def test_nothing_is_said_where_a_token_takes_the_spaces_around_it(tmp_path: Path) -> None:
    usual = tokenizer_json()
    assert least_tokens(huggingface_tokenizer({"tokenizer.json": usual}, tmp_path / "usual"), "e" * 10_000)[0] > 0
    usual["added_tokens"][0] |= {"rstrip": True}
    strips = huggingface_tokenizer({"tokenizer.json": usual}, tmp_path / "strips")
    assert least_tokens(strips, "e" * 10_000)[0] == 0
