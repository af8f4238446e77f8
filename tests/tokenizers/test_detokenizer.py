"""Text while tokens arrive: whole characters only, and in the end the same text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_files import CONTROL, TEXTS, bpe_metadata, gguf_tokenizer, sentencepiece_metadata, trained_sentencepiece

from specdec.errors import InvalidArgumentError
from specdec.tokenizers import Tokenizer

ids = st.lists(st.integers(0, 530), max_size=40)
# sentencepiece ends a text at a NUL and reads U+2581 as a space.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581"), max_size=40)


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    bpe = request.param == "bpe"
    metadata = bpe_metadata() if bpe else sentencepiece_metadata(trained_sentencepiece())
    return gguf_tokenizer(metadata, tmp_path_factory.mktemp(request.param))


def pieces(tokenizer: Tokenizer, tokens: list[int], *, continues: bool = False) -> list[str]:
    detokenizer = tokenizer.detokenizer(continues=continues)
    return [*(detokenizer.add(token) for token in tokens), detokenizer.finish()]


@settings(max_examples=300, deadline=None)
@given(ids, st.booleans())
def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, tokens: list[int], continues: bool) -> None:
    whole = tokenizer.decode(tokens, skip_special=True, continues=continues)
    assert "".join(pieces(tokenizer, tokens, continues=continues)) == whole


@settings(max_examples=300, deadline=None)
@given(text | st.sampled_from(TEXTS))
def test_valid_text_never_shows_half_a_character(tokenizer: Tokenizer, value: str) -> None:
    assume(not any(name in value for name in CONTROL))
    parts = pieces(tokenizer, tokenizer.encode(value, add_bos=False))
    assert "".join(parts) == value
    assert parts[-1] == ""
    assert "\ufffd" in value or not any("\ufffd" in part for part in parts)


@settings(max_examples=100, deadline=None)
@given(ids, st.integers(0, 40))
def test_text_so_far_never_changes(tokenizer: Tokenizer, tokens: list[int], count: int) -> None:
    """What was shown after some tokens begins what is shown after all of them."""
    sofar = "".join(pieces(tokenizer, tokens[:count])[:-1])
    assert tokenizer.decode(tokens, skip_special=True).startswith(sofar)


def test_characters_of_several_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("🤖é", add_bos=False)
    parts = pieces(tokenizer, tokens)
    assert len(tokens) > 3
    assert [part for part in parts if part.strip()] == ["🤖", "é"]
    # Cut in the middle, the first character was begun and never ended.
    first_bytes = tokens[: len(tokens) - 3]
    assert pieces(tokenizer, first_bytes)[-1] == "\ufffd"


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    end = next(iter(tokenizer.eos_ids))
    robot = tokenizer.encode("🤖", add_bos=False)
    parts = pieces(tokenizer, [end, *robot[:-1], end, robot[-1], end])
    assert [part for part in parts if part] == ["🤖"]


def test_negative_ids_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="not negative"):
        tokenizer.detokenizer().add(-2)


def test_an_end_that_the_file_calls_ordinary_is_no_text(tmp_path: Path) -> None:
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.token_type"][2] = 4
    tokenizer = gguf_tokenizer(metadata, tmp_path)
    assert tokenizer.eos_ids == {0, 2}
    assert pieces(tokenizer, [2]) == ["", ""]
