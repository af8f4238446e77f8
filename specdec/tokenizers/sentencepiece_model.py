"""sentencepiece model files in the protobuf wire format: made from a bare vocabulary, changed, and asked for types.

Field numbers: sentencepiece_model.proto of https://github.com/google/sentencepiece. Wire format:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of a piece; GGUF uses the same numbers."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_VOCAB_SIZE, _TRAINER_BYTE_FALLBACK = 3, 4, 35
_NORMALIZER_NAME, _NORMALIZER_TABLE, _NORMALIZER_DUMMY_PREFIX = 1, 2, 3
_NORMALIZER_REMOVE_SPACES, _NORMALIZER_ESCAPE = 4, 5
_BPE = 2


def build_model(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
) -> bytes:
    """Content of a tokenizer.model of type BPE.

    Args:
        pieces: text of each token, by id.
        scores: its score; the highest is merged first.
        types: its type, one of the constants above.
        add_dummy_prefix: text is encoded as if a space came before it.
        remove_extra_whitespaces: runs of spaces count as one.

    Returns:
        The serialised model; sentencepiece itself checks it when it loads it.
    """
    model = bytearray()
    for text, score, kind in zip(pieces, scores, types, strict=True):
        piece = _bytes(_PIECE_TEXT, text.encode("utf-8")) + _float(_PIECE_SCORE, score) + _int(_PIECE_TYPE, kind)
        model += _bytes(_MODEL_PIECES, piece)
    model += _bytes(
        _MODEL_TRAINER,
        _int(_TRAINER_MODEL_TYPE, _BPE)
        + _int(_TRAINER_VOCAB_SIZE, len(pieces))
        + _int(_TRAINER_BYTE_FALLBACK, BYTE in types),
    )
    model += _bytes(
        _MODEL_NORMALIZER,
        _bytes(_NORMALIZER_NAME, b"identity")
        + _int(_NORMALIZER_DUMMY_PREFIX, add_dummy_prefix)
        + _int(_NORMALIZER_REMOVE_SPACES, remove_extra_whitespaces)
        + _int(_NORMALIZER_ESCAPE, True),
    )
    return bytes(model)


def piece_types(content: bytes) -> list[int]:
    """The type of every piece, by id; sentencepiece itself tells some types only.

    Args:
        content: of a tokenizer.model that sentencepiece has read.
    """
    return [
        next((kind for field, kind in _fields(piece) if field == _PIECE_TYPE and isinstance(kind, int)), NORMAL)
        for field, piece in _fields(content)
        if field == _MODEL_PIECES and isinstance(piece, bytes)
    ]


def keeps_text(content: bytes) -> bool:
    """Whether pieces cover every byte of a text: no character is replaced, no space removed, and unknown characters are
    written in bytes, of which sentencepiece wants all 256.

    Args:
        content: of a tokenizer.model that sentencepiece has read.
    """
    found: dict[tuple[int, int], int | bytes] = {(_MODEL_NORMALIZER, _NORMALIZER_REMOVE_SPACES): True}
    for part, message in _fields(content):
        if part in (_MODEL_TRAINER, _MODEL_NORMALIZER) and isinstance(message, bytes):
            found |= {(part, field): value for field, value in _fields(message)}
    return bool(
        found.get((_MODEL_TRAINER, _TRAINER_BYTE_FALLBACK))
        and not found.get((_MODEL_NORMALIZER, _NORMALIZER_TABLE))
        and not found[_MODEL_NORMALIZER, _NORMALIZER_REMOVE_SPACES]
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a message; values of fixed width are bytes."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        if key & 7 == _VARINT:
            value, position = _read_varint(message, position)
            yield key >> 3, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(key & 7)
        if length is None:
            length, position = _read_varint(message, position)
        yield key >> 3, message[position : position + length]
        position += length


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message):
        byte = message[position]
        value, shift, position = value | (byte & 0x7F) << shift, shift + 7, position + 1
        if byte < 0x80 or shift > 63:
            break
    return value, position


def without_dummy_prefix(content: bytes) -> bytes:
    """The same model without a space put before texts.

    Args:
        content: of a tokenizer.model. In the wire format a later field overrides an earlier one.
    """
    return content + _bytes(_MODEL_NORMALIZER, _int(_NORMALIZER_DUMMY_PREFIX, False))


def without_normalizer(content: bytes) -> bytes:
    """The same model, whose text stays as it is: no space before it, spaces not joined, characters not replaced.

    Args:
        content: of a tokenizer.model.
    """
    changes = _bytes(_NORMALIZER_NAME, b"identity") + _bytes(_NORMALIZER_TABLE, b"")
    changes += _int(_NORMALIZER_DUMMY_PREFIX, False) + _int(_NORMALIZER_REMOVE_SPACES, False)
    return content + _bytes(_MODEL_NORMALIZER, changes)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(int(value))


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FIXED32) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value
