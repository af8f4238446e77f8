"""The block types of GGUF files that a store keeps as they are: which bits of a block are codes, scales and offsets.

Format: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (struct block_q8_0 and the others). The weights
equal those of the `gguf` package's `dequantize` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from specdec.weights.base import TensorSpec
from specdec.weights.quantised_types import Arrays, QuantisedType

Factors = tuple[np.ndarray, np.ndarray | None]
SUPERBLOCK = 256


@dataclass(frozen=True, slots=True)
class BlockType(QuantisedType):
    """A GGUF type: one array `blocks`, uint8 (out, in / block * block_bytes).

    Attributes:
        head_at: where the `extra` bytes of a block that are not codes begin.
        unpack: blocks, uint8 (out, blocks, block_bytes), to codes of any shape that has (out, in) numbers in order.
        factors: heads, uint8 (out, blocks, extra), to scale and offset of every group, (out, blocks, block / group).
    """

    head_at: int
    unpack: Callable[[np.ndarray], np.ndarray]
    factors: Callable[[np.ndarray], Factors]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.block * self.bits // 8 + self.extra

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """See `QuantisedType.tensors`."""
        self.check_inputs(shape[1])
        return {"blocks": TensorSpec("U8", (shape[0], shape[1] // self.block * self.block_bytes))}

    def codes(self, arrays: Arrays) -> np.ndarray:
        """See `QuantisedType.codes`."""
        blocks = self._blocks(arrays)
        return self.unpack(blocks).reshape(len(blocks), -1)

    def scale_and_offset(self, arrays: Arrays) -> Factors:
        """See `QuantisedType.scale_and_offset`."""
        heads = self.heads(arrays)["heads"]
        scale, offset = self.factors(heads.reshape(len(heads), -1, self.extra))
        shape = (len(heads), -1)
        return scale.reshape(shape), None if offset is None else offset.reshape(shape)

    def heads(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """`heads`, uint8 (out, in / block * extra): of every block the bytes that are not codes."""
        if "heads" in arrays:
            return {"heads": arrays["heads"]}
        blocks = self._blocks(arrays)[..., self.head_at : self.head_at + self.extra]
        return {"heads": blocks.reshape(len(blocks), -1)}

    def head_tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """See `QuantisedType.head_tensors`."""
        return {"heads": TensorSpec("U8", (shape[0], shape[1] // self.block * self.extra))}

    def _blocks(self, arrays: Arrays) -> np.ndarray:
        blocks = arrays["blocks"]
        return blocks.reshape(len(blocks), -1, self.block_bytes)


def _float16(heads: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of every head, as float32 (out, blocks, 1)."""
    return np.ascontiguousarray(heads[..., at : at + 2]).view(np.float16).astype(np.float32)


def _halves(nibbles: np.ndarray) -> np.ndarray:
    """Low nibbles, then high ones: (…, n) bytes to (…, 2, n) codes."""
    return np.stack((nibbles & np.uint8(15), nibbles >> np.uint8(4)), axis=-2)


def _nibbles(at: int) -> Callable[[np.ndarray], np.ndarray]:
    """Codes of a block of 32 from 16 bytes at `at`."""
    return lambda blocks: _halves(blocks[..., at : at + 16])


def _nibbles_and_bits(at: int) -> Callable[[np.ndarray], np.ndarray]:
    """5-bit codes of a block of 32: four bytes of fifth bits at `at`, then 16 bytes of nibbles."""

    def unpack(blocks: np.ndarray) -> np.ndarray:
        fifth = np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little")
        low = _halves(blocks[..., at + 4 : at + 20])
        codes: np.ndarray = low | (fifth << np.uint8(4)).reshape(low.shape)
        return codes

    return unpack


def _scale(heads: np.ndarray) -> Factors:
    return _float16(heads, 0), None


def _scale_and_minimum(heads: np.ndarray) -> Factors:
    # x - (-m) is x + m in every bit.
    return _float16(heads, 0), -_float16(heads, 2)


def _k_factors(heads: np.ndarray) -> Factors:
    """Eight 6-bit scales and minima in 12 bytes at 4: the first four in the low bits of bytes 0 to 7, the others' low
    nibbles in bytes 8 to 11 and their upper two bits on top of the first four."""
    first, second, mixed = (heads[..., at : at + 4] for at in (4, 8, 12))
    six, two = np.uint8(0x3F), np.uint8(0x30)
    scales = np.concatenate((first & six, (mixed & np.uint8(15)) | ((first >> np.uint8(2)) & two)), axis=-1)
    minima = np.concatenate((second & six, (mixed >> np.uint8(4)) | ((second >> np.uint8(2)) & two)), axis=-1)
    return _float16(heads, 0) * scales.astype(np.float32), _float16(heads, 2) * minima.astype(np.float32)


def _k4_codes(blocks: np.ndarray) -> np.ndarray:
    return _halves(blocks[..., 16:144].reshape(*blocks.shape[:2], 4, 32))


def _k5_codes(blocks: np.ndarray) -> np.ndarray:
    low = _halves(blocks[..., 48:176].reshape(*blocks.shape[:2], 4, 32))
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[..., None, 16:48] >> shifts) & np.uint8(1)
    codes: np.ndarray = low | (fifth << np.uint8(4)).reshape(low.shape)
    return codes


def _k6_codes(blocks: np.ndarray) -> np.ndarray:
    low = _halves(blocks[..., :128].reshape(*blocks.shape[:2], 2, 64))
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high = (blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32) >> shifts) & np.uint8(3)
    codes: np.ndarray = low | (high << np.uint8(4)).reshape(low.shape)
    return codes


def _k6_factors(heads: np.ndarray) -> Factors:
    scales = np.ascontiguousarray(heads[..., :16]).view(np.int8).astype(np.float32)
    return _float16(heads, 16) * scales, None


BLOCK_TYPES = (
    BlockType("q8_0", 8, 128, 32, 32, 2, 0, lambda blocks: blocks[..., 2:] ^ np.uint8(128), _scale),
    BlockType("q4_0", 4, 8, 32, 32, 2, 0, _nibbles(2), _scale),
    BlockType("q4_1", 4, 0, 32, 32, 4, 0, _nibbles(4), _scale_and_minimum),
    BlockType("q5_0", 5, 16, 32, 32, 2, 0, _nibbles_and_bits(2), _scale),
    BlockType("q5_1", 5, 0, 32, 32, 4, 0, _nibbles_and_bits(4), _scale_and_minimum),
    BlockType("q4_k", 4, 0, 32, SUPERBLOCK, 16, 0, _k4_codes, _k_factors),
    BlockType("q5_k", 5, 0, 32, SUPERBLOCK, 16, 0, _k5_codes, _k_factors),
    BlockType("q6_k", 6, 32, 16, SUPERBLOCK, 18, 192, _k6_codes, _k6_factors),
)
