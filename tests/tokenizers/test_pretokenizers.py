"""Pre-tokenizer rules of GGUF files against the tokenizers that they name: the same tokens for any text.

`PUBLISHED` holds what the models' own tokenizer.json files say under `pre_tokenizer` and `normalizer`.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TEXTS, trained_bpe
from tokenizers import Regex, Tokenizer, pre_tokenizers

from specdec.tokenizers.pieces import byte_of_character
from specdec.tokenizers.pretokenizers import Rule, build_byte_level, rule

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BARE_BYTES = BYTES | {"use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}


def split(*patterns: str, then: dict[str, Any] | None = None) -> dict[str, Any]:
    """A sequence of cuts at patterns, then bytes."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*cuts, *([then] if then else []), BARE_BYTES]}


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+")
BLOOM = " ?[^(\\s|[.,!?…。\uff0c、।\u06d4،])]+"

PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "gpt-2": (BYTES, None),
    "olmo": (BYTES, NFC),
    "smollm": ({"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}, None),
    "starcoder": ({"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}, None),
    "command-r": ({"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}, NFC),
    "qwen2": (split(QWEN2), NFC),
    "deepseek-r1-qwen": (split(QWEN2), NFC),
    "qwen35": (split(QWEN35), NFC),
    "llama-bpe": (split(LLAMA3), None),
    "llama3": (split(LLAMA3), None),
    "smaug-bpe": (split(LLAMA3), None),
    "tekken": (split(TEKKEN), None),
    "gpt-4o": (split(O200K), None),
    "deepseek-v3": (split(*DEEPSEEK3), {"type": "Sequence", "normalizers": []}),
    "deepseek-coder": (split(*DEEPSEEK_CODER, then=DIGITS), {"type": "Sequence", "normalizers": []}),
    "bloom": (split(BLOOM), None),
}

SAMPLES = [
    *TEXTS,
    "It's we'LL I'm they'd YOU'RE 'tis don't\u2019s O'Neill 'S'T",
    "12345 3.14159 1,000,000 ٣٤٥٦ २३ Ⅻ ½ x² 0x7f a1b2c3 ２０２５年",
    "camelCase HTTPServer XMLHttpRequest ÉCOLE éCOLE ǅungla ʰello ªº",
    "  leading\n\n\n   spaces \t\ttabs\r\n\r\nwindows\r  trailing   ",
    "东京東京は日本の首都です。カタカナ ひらがな 한국어 ไทย हिन्दी العربية עברית",
    "e\u0301 n\u0303 cafe\u0301s \u200d👨\u200d👩\u200d👧 🙂🙃 \u00a0nbsp\u2003em\u3000wide",
    "x=(a+b)*c/d; // note\n#include <stdio.h>\n\tfor(i=0;i<10;++i){} ``` --- ***!!!???…",
    "https://example.com/path?q=1&r=2#frag user@host.org C:\\dir\\file.txt",
    "",
    " ",
    "\n",
]
# Characters of every kind that the patterns tell apart.
ALPHABET = (
    "aZéÉǅʰª中ア한ไ\u0301\u093f'sStTrRveVEllmMdD019٣½Ⅻ .,!?/(|)$+<~^`…。\uff0c\u0964\u06d4- \t\n\r\u00a0\u3000🙂\u200d_"
)


@cache
def published(name: str) -> Tokenizer:
    """The small vocabulary behind the published preparation of text."""
    before, normalizer = PUBLISHED[name]
    tokenizer = json.loads(ours(rule(name)).to_str()) | {"pre_tokenizer": before, "normalizer": normalizer}
    return Tokenizer.from_str(json.dumps(tokenizer))


@cache
def ours(chosen: Rule) -> Tokenizer:
    model = trained_bpe()
    return build_byte_level(model["vocab"], [(left, right) for left, right in model["merges"]], rule=chosen)


def cuts(tokenizer: Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return tokenizer.pre_tokenizer.pre_tokenize_str(normalized)


@pytest.mark.parametrize("name", PUBLISHED)
def test_rules_cut_text_as_their_models_do(name: str) -> None:
    for text in SAMPLES:
        assert cuts(ours(rule(name)), text) == cuts(published(name), text), text
        assert ours(rule(name)).encode(text).ids == published(name).encode(text).ids, text


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@settings(max_examples=40, deadline=None)
@given(text=st.text(ALPHABET, max_size=24) | st.text(max_size=24))
def test_rules_cut_any_text_as_their_models_do(name: str, text: str) -> None:
    assert cuts(ours(rule(name)), text) == cuts(published(name), text)


def test_the_default_rule_is_its_four_cuts_in_turn() -> None:
    """llama.cpp's own, which no model publishes: cut at each pattern, and keep what lies between."""
    cuts_in_turn = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{P}\$\+<=>\^~\|]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for text in ("a$b ~~ 'tis It's <x>", "  a\n\n b", "中文 é"):
        assert cuts(ours(rule("default")), text) == cuts_in_turn.pre_tokenize_str(text)
    digits = [part for part, _ in cuts(ours(rule("default")), "x 1234567 ٣٤٥٦")]
    assert digits == ["x", "Ġ", "123", "456", "7", "Ġ", "".join(bytes_of("٣٤٥٦".encode()))]


def bytes_of(text: bytes) -> list[str]:
    """The characters that byte-level vocabularies write for bytes."""
    characters = {byte: character for character, byte in byte_of_character().items()}
    return [characters[byte] for byte in text]


def tekken_files() -> list[Path]:
    """Mistral's own vocabularies of this kind, when the mistral-common package is installed."""
    spec = find_spec("mistral_common")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return sorted(path for folder in folders for path in Path(folder).glob("data/tekken_*.json"))


@pytest.mark.skipif(not tekken_files(), reason="needs the package mistral-common, which carries Mistral's vocabularies")
def test_real_tekken_vocabulary() -> None:
    content = json.loads(tekken_files()[-1].read_text())
    pattern = content["config"]["pattern"]
    assert rule("tekken").patterns == (pattern,)
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in content["vocab"][:2500]}
    names = {token: "".join(bytes_of(token)) for token in ranks}
    # As llama.cpp's converter makes merges: a token's parts are what lower ranks make of it.
    merges = [
        parts for token, rank in ranks.items() if len(token) > 1 and len(parts := merged(token, ranks, rank)) == 2
    ]
    tokenizer = build_byte_level(
        {names[token]: rank for token, rank in ranks.items()},
        [(names[left], names[right]) for left, right in merges],
        rule=rule("tekken"),
    )
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    for text in SAMPLES:
        words = [word.encode() for word, _ in cut.pre_tokenize_str(text)]
        assert tokenizer.encode(text).ids == [ranks[part] for word in words for part in merged(word, ranks)]


def merged(word: bytes, ranks: dict[bytes, int], below: int | None = None) -> list[bytes]:
    """Parts of a word: of two neighbours the pair of the lowest rank is joined, over and over, as tiktoken does."""
    if below is None and word in ranks:
        return [word]
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = [(ranks.get(left + right), i) for i, (left, right) in enumerate(pairwise(parts))]
        known = [(rank, i) for rank, i in pairs if rank is not None and (below is None or rank < below)]
        if not known:
            return parts
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
