"""Bounds on what a tokenizer.json may make of a text, checked before the tokenizers library, which has none, reads it.

The library runs the steps of a file as they stand. A few hundred bytes can ask it to double a text forty times, and a
shortage of memory in it ends the process.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.tokenizers.meta import MOST_TOKENS

MOST_TEXT_BYTES = 8 << 20  # encoded at once, which takes up to a hundred times as much memory
MOST_MERGES = 1 << 21
MOST_ADDED = 1 << 15  # tokens that are found in text before all others
MOST_ADDED_CHARS, MOST_ADDED_SUM = 4096, 1 << 22
_MOST_STEPS = 256
_MOST_GROWTH = 4096  # bytes of a prepared text for each byte of the text
_MOST_PREFIX = 4096
_MOST_REPEATS, _MOST_PIECES = 16, 256
_MOST_TRIE_BYTES = 1 << 22  # of a Unigram vocabulary, of which the library makes a node for each byte
_MOST_PATTERN = 1 << 16

# Bytes that a step makes of one byte, at most. A step that is not named makes no more than it takes.
_GROWTH = {
    "ByteLevel": 2, "BertNormalizer": 3, "Metaspace": 3, "NFD": 4, "NFC": 4, "NFKD": 18, "NFKC": 18, "Lowercase": 2,
}  # fmt: skip
_PARTS = ("normalizers", "pretokenizers", "processors")


def check_tokenizer(values: Mapping[str, Any], where: str) -> None:
    """Refuse a tokenizer.json whose steps multiply text, or whose tables are far larger than any.

    What is malformed passes: the library refuses it.

    Args:
        values: the content.
        where: names it in messages.

    Raises:
        ModelFormatError: a bound is exceeded.
    """
    model = values.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, (dict, list)):
        _check_vocabulary(vocabulary, where)
    merges = model.get("merges") if isinstance(model, dict) else None
    if isinstance(merges, list) and len(merges) > MOST_MERGES:
        raise ModelFormatError(f"{where} has {len(merges)} merges: at most {MOST_MERGES} are read")
    added = values.get("added_tokens")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    check_added([token["content"] for token in tokens if isinstance(token.get("content"), str)], where)
    before = [step for part in ("normalizer", "pre_tokenizer") for step in steps_of(values.get(part))]
    after = list(steps_of(values.get("post_processor")))
    if len(before) + len(after) > _MOST_STEPS:
        raise ModelFormatError(f"{where} has more than {_MOST_STEPS} steps")
    if (growth := math.prod(map(_growth, before))) > _MOST_GROWTH:
        raise ModelFormatError(f"{where} multiplies text: its steps make up to {growth:.3g} bytes of one")
    if sum(len(step["prepend"]) for step in before if isinstance(step.get("prepend"), str)) > _MOST_PREFIX:
        raise ModelFormatError(f"{where} puts more than {_MOST_PREFIX} characters before a text")
    _check_patterns(before, where)
    _check_templates(after, where)


def check_added(texts: Sequence[str], where: str) -> None:
    """Refuse tokens, found in text before all others, of which no automaton can be made in reasonable memory.

    Raises:
        ModelFormatError: they are too many or too long.
    """
    if len(texts) > MOST_ADDED:
        raise ModelFormatError(f"{where} has {len(texts)} control or added tokens: at most {MOST_ADDED} are read")
    if max(map(len, texts), default=0) > MOST_ADDED_CHARS or sum(map(len, texts)) > MOST_ADDED_SUM:
        raise ModelFormatError(
            f"{where} has control or added tokens that are too long: at most {MOST_ADDED_CHARS} characters each and "
            f"{MOST_ADDED_SUM} together are read"
        )


def _check_vocabulary(vocabulary: dict[str, Any] | list[Any], where: str) -> None:
    if len(vocabulary) > MOST_TOKENS:
        raise ModelFormatError(f"{where} has {len(vocabulary)} tokens: at most {MOST_TOKENS} are read")
    if isinstance(vocabulary, list):
        texts = (entry[0] for entry in vocabulary if isinstance(entry, list) and entry)
        if sum(len(text.encode()) for text in texts if isinstance(text, str)) > _MOST_TRIE_BYTES:
            raise ModelFormatError(f"{where} has a vocabulary of more than {_MOST_TRIE_BYTES >> 20} MiB of text")


def steps_of(value: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part of the file, those within sequences in their place."""
    if not isinstance(value, dict):
        return
    inner = [value[part] for part in _PARTS if isinstance(value.get(part), list)]
    for steps in inner:
        for step in steps:
            yield from steps_of(step)
    if not inner:
        yield value


def _growth(step: dict[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Replace":
        content, pattern = step.get("content"), step.get("pattern")
        size = len(content.encode()) if isinstance(content, str) else 0
        if isinstance(pattern, dict) and isinstance(text := pattern.get("String"), str) and text:
            return max(1.0, size / len(text.encode()))
        return 1.0 + size  # a regular expression may match nothing, before every byte
    if kind == "Precompiled":
        return _longest_replacement(step.get("precompiled_charsmap"))
    return _GROWTH.get(kind, 1) if isinstance(kind, str) else 1


def _longest_replacement(table: Any) -> float:
    """Longest replacement in sentencepiece's table: a size, a trie of that size, and texts that end in zero bytes."""
    try:
        content = base64.b64decode(table)
    except unless_signalled(TypeError, ValueError):
        return 1
    return 1 + max(map(len, content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")))


def _check_patterns(steps: list[dict[str, Any]], where: str) -> None:
    patterns = (step["pattern"].get("Regex") for step in steps if isinstance(step.get("pattern"), dict))
    if any(isinstance(text, str) and len(text) > _MOST_PATTERN for text in patterns):
        raise ModelFormatError(f"{where} has a regular expression of more than {_MOST_PATTERN} characters")


def _check_templates(steps: list[dict[str, Any]], where: str) -> None:
    """Each template that is applied may write the text again, and that of the one before it."""
    repeats = 1
    for step in steps:
        for name in ("single", "pair"):
            pieces = step.get(name)
            if not isinstance(pieces, list):
                continue
            tokens = step.get("special_tokens")
            tokens = [one for one in tokens.values() if isinstance(one, dict)] if isinstance(tokens, dict) else []
            longest = max((len(one["ids"]) for one in tokens if isinstance(one.get("ids"), list)), default=1)
            if len(pieces) * longest > _MOST_PIECES:
                raise ModelFormatError(f"{where} adds more than {_MOST_PIECES} tokens to a text")
            if name == "single":
                repeats *= max(1, sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces))
    if repeats > _MOST_REPEATS:
        raise ModelFormatError(f"{where} repeats a text more than {_MOST_REPEATS} times")
