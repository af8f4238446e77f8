"""Tokenizers in Hugging Face's tokenizer.json format. Building one from a GGUF vocabulary lives in `pretokenizers`."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any
from unicodedata import is_normalized

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from specdec.errors import ModelFormatError
from specdec.parse import foreign, parse_json, quiet_panics
from specdec.tokenizers.base import Tokenizer
from specdec.tokenizers.markup import Part
from specdec.tokenizers.meta import BPE_NAME, MOST_TOKENS, TokenizerMeta
from specdec.tokenizers.pieces import (
    WORD_START,
    PieceTable,
    byte_fallback_piece,
    byte_level_piece,
    byte_of_character,
)
from specdec.tokenizers.tokenizer_limits import check_tokenizer, steps_of

# Words, numbers, marks, spaces and letters of several scripts, which patterns tell apart.
_SAMPLE = (
    "Hello, world 1\nThe quick brown fox jumped 12345 times   over\tfoo_bar(x) -- naïve été 東京都庁舎 привет!!!\n"
)
_MOST_SAMPLE_S = 0.25  # a usual tokenizer takes a hundredth of it
_CUTS = ("ByteLevel", "Digits", "Metaspace", "Split")  # steps that cut a text, and keep all of it if they are asked to
_UTF8 = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]


class BPETokenizer(Tokenizer):
    """A tokenizer.json, of byte-level BPE or of sentencepiece's BPE with byte fallback.

    Args:
        meta: what the file does not say.
        content: the tokenizer.json.

    Raises:
        ModelFormatError: the file is damaged, or decodes in a way that is not supported.
    """

    def __init__(self, meta: TokenizerMeta, content: bytes) -> None:
        self._backend, values = _read(content)
        added = self._backend.get_added_tokens_decoder().values()
        super().__init__(
            meta,
            _table(self._backend, values.get("decoder")),
            [token.content for token in added if not token.special],
        )
        self._uncovered = _uncovered(values, self._table, added)

    def _covered(self, text: str) -> bytes:
        if self._uncovered is None:
            return b""
        normalizer = self._backend.normalizer
        prepared = text if normalizer is None or text.isascii() else normalizer.normalize_str(text)
        return prepared.replace(WORD_START, " ").encode("utf-8").translate(None, self._uncovered)

    def _encode(self, text: str) -> list[int]:
        with foreign(BPE_NAME):
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_parts(self, parts: Sequence[Part]) -> list[int]:
        names, backend = self._renamed
        texts = [part.text for part in parts]
        if names:
            pattern = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
            texts = [part.text if part.is_literal else pattern.sub(lambda x: names[x[0]], part.text) for part in parts]
        with foreign(BPE_NAME):
            ids: list[int] = backend.encode("".join(texts), add_special_tokens=False).ids
        return ids

    @cached_property
    def _renamed(self) -> tuple[dict[str, str], Backend]:
        """A tokenizer with other names for the tokens that are found in text, and what each is called there.

        The names hold a random number, so that no text can spell them.
        """
        content = parse_json(self._backend.to_str())
        salt = secrets.token_hex(8)
        added = content["added_tokens"]
        names = {token["content"]: f"\ufdd0{salt}:{token['id']}\ufdd1" for token in added}
        for token in added:
            token["content"] = names[token["content"]]
        model = content["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(text, text): index for text, index in model["vocab"].items()}
            merges = ((merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"])
            model["merges"] = [merge for merge, pair in merges if not names.keys() & {pair[0], pair[-1], "".join(pair)}]
        else:
            model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        content["post_processor"] = None
        return names, read_backend(json.dumps(content).encode("utf-8"))


def read_backend(content: bytes) -> Backend:
    """The tokenizers library's object, which neither cuts a text nor fills it up.

    Raises:
        ModelFormatError: the content is not a valid tokenizer.json, or exceeds a bound.
    """
    return _read(content)[0]


def _read(content: bytes) -> tuple[Backend, Any]:
    """What `read_backend` gives, and the values of the file."""
    with foreign(BPE_NAME), quiet_panics():
        values = parse_json(content)
        if isinstance(values, dict):
            check_tokenizer(values, BPE_NAME)
        backend = Backend.from_str(content.decode("utf-8"))
        backend.no_truncation()
        backend.no_padding()
        _try(backend)
        return backend, values


def _uncovered(values: Any, table: PieceTable, added: Iterable[AddedToken]) -> bytes | None:
    """Bytes that no token need cover in a text that the normalizer is done with: the model drops those that it has no
    token for. None where other bytes may be missing, too: a step may remove some, and a token for unknown text stands
    for any length of it."""
    model, cuts = values["model"], list(steps_of(values.get("pre_tokenizer")))
    before = list(steps_of(values.get("normalizer")))
    own = {piece for token, piece in enumerate(table.pieces) if token not in table.special}
    missing = bytes(byte for byte in _UTF8 if bytes([byte]) not in own)
    is_level = any(step.get("type") == "ByteLevel" for step in cuts)
    keeps = (
        model.get("type") == "BPE"
        and (is_level or (model.get("byte_fallback") and not missing))
        and all(step.get("type") in ("NFC", "Prepend") or _writes_spaces(step) for step in before)
        and all(step.get("type") in _CUTS and step.get("behavior") != "Removed" for step in cuts)
        and not any(token.lstrip or token.rstrip or not is_normalized("NFC", token.content) for token in added)
    )
    return missing if keeps else None


def _writes_spaces(step: dict[str, Any]) -> bool:
    return (step.get("type"), step.get("pattern"), step.get("content")) == ("Replace", {"String": " "}, WORD_START)


def _try(backend: Backend) -> None:
    """Encode texts of growing length: some settings only fail here, and a pattern that goes back over a text again and
    again shows in the time of a short one already.

    Raises:
        ModelFormatError: it takes too long.
    """
    for size in (16, 64, 128, 256, 512, 1024):
        began_s = time.thread_time()
        backend.encode((_SAMPLE * (1 + size // len(_SAMPLE)))[:size], add_special_tokens=False)
        if time.thread_time() - began_s > _MOST_SAMPLE_S:
            raise ModelFormatError(f"{BPE_NAME} takes too long: a pattern in it goes back over a text again and again")


def _table(backend: Backend, decoder: Any) -> PieceTable:
    byte_level, strip = _decoding(decoder)
    alphabet = byte_of_character()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    if size > MOST_TOKENS:
        raise ModelFormatError(f"{BPE_NAME} numbers a token {size - 1}: at most {MOST_TOKENS - 1} is read")
    pieces = [b""] * size
    for token, index in vocabulary.items():
        pieces[index] = byte_level_piece(token, alphabet) if byte_level else byte_fallback_piece(token)
    special = set()
    for index, added in backend.get_added_tokens_decoder().items():
        pieces[index] = added.content.encode("utf-8")
        if added.special:
            special.add(index)
    return PieceTable(tuple(pieces), frozenset(special), strip)


def _decoding(decoder: Any) -> tuple[bool, bool]:
    """(byte-level alphabet, first space dropped) of a tokenizer.json's decoder section."""
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return True, False
    if not kinds or not all(_is_word_start_step(step) for step in steps):
        shown = ", ".join(map(str, kinds)) or "none"
        raise ModelFormatError(f"{BPE_NAME} has an unsupported decoder ({shown}): ByteLevel or sentencepiece's is read")
    strip = any(step["type"] == "Strip" and step.get("start") == 1 for step in steps)
    metaspace = any(step["type"] == "Metaspace" and _prepends(step) for step in steps)
    return False, strip or metaspace


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _steps(inner)]
    return [decoder]


def _is_word_start_step(step: dict[str, Any]) -> bool:
    """Whether this decoding step is one of those that sentencepiece vocabularies have."""
    match step:
        case {"type": "Replace", "pattern": {"String": pattern}, "content": " "}:
            return bool(pattern == WORD_START)
        case {"type": "ByteFallback"} | {"type": "Fuse"}:
            return True
        case {"type": "Strip", "content": " ", "start": 0 | 1, "stop": 0}:
            return True
        case {"type": "Metaspace", "replacement": replacement}:
            return bool(replacement == WORD_START)
    return False


def _prepends(step: dict[str, Any]) -> bool:
    return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True) is not False
